//! What a coordinator process answers, frame by frame, to a member that speaks for itself.

use std::path::Path;

use bytes::Bytes;
use larder::net::{
    Congestion, Endpoint, EndpointOptions, Exchange, Limits, Link, LinkError, Patience, Port,
    Runtime, Wanted,
};
use larder::proto::code::Code;
use larder::proto::wire::{Peering, PutBlob, Request, Resolve, ResolveName, Response};
use larder::spec::{MAX_SPEC_LEN, Spec, SpecHash};
use larder::trust::{Identity, IdentityOptions, IdentityPaths};

use crate::site::{Daemon, Site};

const OLD: &str = "steps: [old]\n";
const NEW: &str = "steps: [new]\n";

/// A publisher with a connection of its own.
struct Member {
    link: Link,
    runtime: Runtime,
}

impl Member {
    fn of(site: &Site, coordinator: &Daemon) -> Self {
        let paths = IdentityPaths::in_dir(Path::new(&site.identity("publisher", "p")));
        let identity = Identity::load(paths, IdentityOptions::default()).expect("good");
        let runtime = Runtime::start().expect("a thread");
        let any = "127.0.0.1:0".parse().expect("an address");
        let port = Port::bind(any, identity.uri().cluster()).expect("a port");
        let options = EndpointOptions {
            reset_key: [7; 32],
            agent: "test".into(),
            max_spec_len: MAX_SPEC_LEN,
            limits: Limits::default(),
            congestion: Congestion::default(),
        };
        let endpoint = Endpoint::start(runtime.handle(), port, identity, options).expect("started");
        let link = Link::new(&endpoint, coordinator.addr(), Wanted::Coordinator);
        Self { link, runtime }
    }

    fn call<T>(
        &self,
        request: &Request,
        body: Bytes,
        read: impl AsyncFnOnce(Exchange) -> Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        self.runtime.handle().block_on(async {
            let call = self.link.call(request, body, Patience::coordinator());
            read(call.await?).await
        })
    }

    /// Sends a body under a hash.
    fn put(&self, hash: SpecHash, body: &str) -> Result<Response, LinkError> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let len = u64::try_from(body.len()).expect("small");
        let put = Request::PutBlob(PutBlob { hash, len });
        self.call(&put, body, async |mut exchange| exchange.next().await)
    }

    /// The hash of `daily`, and its bytes if they came, for one who has `if_hash`.
    fn resolve(&self, if_hash: Option<SpecHash>, body: bool) -> (Option<SpecHash>, Option<Bytes>) {
        let name = "daily".parse().expect("a name");
        let names = vec![ResolveName {
            name,
            if_hash,
            body,
        }];
        let request = Request::Resolve(Resolve {
            at: None,
            names,
            peering: Peering::Takes,
        });
        let answer = self.call(&request, Bytes::new(), async |mut exchange| {
            let opening = exchange.next().await?;
            assert!(matches!(opening, Response::Resolved(_)), "{opening:?}");
            let Response::Outcome(outcome) = exchange.next().await? else {
                panic!("no outcome");
            };
            let bytes = match outcome.body {
                true => Some(exchange.body(MAX_SPEC_LEN).await?),
                false => None,
            };
            Ok((outcome.version.and_then(|version| version.hash), bytes))
        });
        answer.expect("answered")
    }
}

fn hash(body: &str) -> SpecHash {
    Spec::new(Bytes::copy_from_slice(body.as_bytes())).hash()
}

#[test]
fn bytes_come_with_a_record_only_to_those_who_lack_them() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    for body in [OLD, NEW] {
        let file = site.write("daily.yaml", body);
        let publish = ["publish", &file, "--socket", coordinator.socket()];
        site.run(&publish).ok();
    }
    let member = Member::of(&site, &coordinator);
    let (new, bytes) = (hash(NEW), Bytes::from_static(NEW.as_bytes()));
    for (has, wants, gets) in [
        (None, true, Some(&bytes)),
        (Some(hash(OLD)), true, Some(&bytes)),
        (Some(new), true, None),
        (None, false, None),
    ] {
        let answer = member.resolve(has, wants);
        assert_eq!(answer, (Some(new), gets.cloned()), "{has:?}");
    }
}

#[test]
fn a_body_under_the_hash_of_another_is_refused() {
    let site = Site::new();
    let coordinator = site.coordinator("c");
    let member = Member::of(&site, &coordinator);
    let refused = member.put(hash(OLD), NEW).expect_err("another hash");
    match refused {
        LinkError::Refused(refusal) => {
            assert_eq!(refusal.code, Code::Invalid);
            assert!(
                refusal.message.contains("not what it should be"),
                "{refusal}"
            );
        }
        other => panic!("{other:?}"),
    }
    for body in [OLD, NEW] {
        let get = [
            "get",
            &hash(body).to_string(),
            "--socket",
            coordinator.socket(),
        ];
        site.run(&get).fails(3, &[]);
    }
    assert_eq!(
        member.put(hash(NEW), NEW).expect("taken"),
        Response::Stored(())
    );
}
