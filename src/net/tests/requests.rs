//! What a dialler may send, against bare quinn that sends something else.

use super::*;
use crate::catalog::{Epoch, Revision};
use crate::identity::Role;
use crate::proto::code::{CloseCode, Code};
use crate::proto::limit::MAX_FRAME_LEN;
use crate::proto::role::{Kind, allowed};
use crate::proto::wire::{
    GetLog, Have, Peering, PrepAck, Publish, PutBlob, Resolve, SessionId, Watch,
};

async fn connect(pair: &Pair, client: &quinn::Endpoint, who: &str) -> quinn::Connection {
    let tls = trust::client_config(&pair.certs.load(who));
    let connection = raw_dial(client, tls, &pair.coordinator)
        .await
        .expect("connected");
    let answer = raw_ask(&connection, &frame(&hello()), true)
        .await
        .expect("an answer");
    assert!(matches!(answer, Ok(Response::Welcome(_))), "{answer:?}");
    connection
}

async fn refusal(connection: &quinn::Connection, bytes: &[u8], finish: bool) -> Refusal {
    let answer = raw_ask(connection, bytes, finish).await.expect("an answer");
    answer.expect_err("a refusal")
}

fn quick() -> EndpointOptions {
    let mut options = options();
    options.limits.floor = QUICK;
    options
}

#[tokio::test]
async fn a_bad_request_is_refused_on_its_stream_and_the_connection_lives() {
    let pair = Pair::with(quick());
    let client = raw(None);
    let connection = connect(&pair, &client, "dev/reader/r1").await;
    let status = frame(&Request::GetStatus);
    let with_len = |len: u32| [&len.to_be_bytes()[..], &status[4..]].concat();
    let trailing = [&with_len(2)[..], &[0]].concat();
    let followed = [&status[..], &[0]].concat();
    for (what, bytes, finish, code) in [
        ("nothing", &[][..], true, Code::BadFrame),
        ("half a prefix", &status[..3], true, Code::BadFrame),
        ("a short header", &with_len(9), true, Code::BadFrame),
        ("an unknown tag", &[0, 0, 0, 1, 200], true, Code::BadFrame),
        ("an answer's tag", &[0, 0, 0, 1, 2], true, Code::BadFrame),
        ("no length", &[0, 0, 0, 0, 1], true, Code::BadFrame),
        (
            "trailing bytes in the frame",
            &trailing,
            true,
            Code::BadFrame,
        ),
        ("bytes after the frame", &followed, true, Code::BadFrame),
        ("a second hello", &frame(&hello()), true, Code::BadFrame),
        (
            "a frame beyond the limit",
            &with_len(MAX_FRAME_LEN + 1),
            false,
            Code::TooLarge,
        ),
        (
            "a frame too long for a reader",
            &with_len(MAX_FRAME_LEN),
            false,
            Code::TooLarge,
        ),
        (
            "a request that stops coming",
            &with_len(9),
            false,
            Code::Busy,
        ),
    ] {
        assert_eq!(
            refusal(&connection, bytes, finish).await.code,
            code,
            "{what}"
        );
    }
    let answer = raw_ask(&connection, &status, true)
        .await
        .expect("an answer");
    assert!(matches!(answer, Ok(Response::Status(_))), "{answer:?}");
}

#[tokio::test]
async fn a_first_stream_without_hello_closes_the_connection() {
    let pair = Pair::new();
    let client = raw(None);
    for bytes in [
        frame(&Request::GetStatus),
        vec![0, 0, 0, 1, 200],
        Vec::new(),
    ] {
        let tls = trust::client_config(&pair.certs.load("dev/worker/w1"));
        let connection = raw_dial(&client, tls, &pair.coordinator)
            .await
            .expect("connected");
        let error = raw_ask(&connection, &bytes, true)
            .await
            .expect_err("closed");
        assert!(
            matches!(error, LinkError::Closed(CloseCode::BadHello)),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    let pair = Pair::new();
    let client = raw(None);
    let connection = connect(&pair, &client, "dev/publisher/p1").await;
    for len in [MAX_SPEC_LEN + 1, u64::MAX] {
        let put = Request::PutBlob(PutBlob {
            hash: SpecHash::of(b""),
            len,
        });
        let refusal = refusal(&connection, &frame(&put), false).await;
        assert_eq!(refusal.code, Code::TooLarge);
        assert!(refusal.message.contains(&len.to_string()), "{refusal}");
    }
}

#[tokio::test]
async fn a_body_cut_short_is_refused() {
    let pair = Pair::new();
    let client = raw(None);
    let connection = connect(&pair, &client, "dev/publisher/p1").await;
    let put = Request::PutBlob(PutBlob {
        hash: SpecHash::of(b"abc"),
        len: 3,
    });
    let bytes = [&frame(&put)[..], b"ab"].concat();
    assert_eq!(
        refusal(&connection, &bytes, true).await.code,
        Code::BadFrame
    );
    let bytes = [&frame(&put)[..], b"abc"].concat();
    let answer = raw_ask(&connection, &bytes, true).await.expect("an answer");
    assert_eq!(answer, Ok(Response::Stored(())));
}

#[tokio::test]
async fn a_body_of_any_length_arrives_whole() {
    let pair = Pair::new();
    let publisher = bind(
        &pair.runtime,
        pair.certs.load("dev/publisher/p1"),
        options(),
    );
    let link = link(&publisher, &pair.coordinator, Wanted::Coordinator);
    for len in [0, 1, 70_000, MAX_SPEC_LEN] {
        let body = Bytes::from(vec![5; usize::try_from(len).expect("small")]);
        let put = Request::PutBlob(PutBlob {
            hash: SpecHash::of(&body),
            len,
        });
        let mut exchange = link.call(&put, body, patience()).await.expect("sent");
        assert_eq!(
            exchange.next().await.expect("an answer"),
            Response::Stored(())
        );
    }
}

#[tokio::test]
async fn the_role_table_holds_over_the_wire() {
    let pair = Pair::new();
    let client = raw(None);
    // The service is never entered for a refused one; those it leaves unanswered are `Internal`.
    let requests = [
        (
            Kind::Resolve,
            Request::Resolve(Resolve {
                at: None,
                names: vec![],
                peering: Peering::Alone,
            }),
        ),
        (Kind::GetBlob, get_blob(1)),
        (
            Kind::GetLog,
            Request::GetLog(GetLog {
                name: None,
                before: None,
                limit: 1,
            }),
        ),
        (Kind::GetStatus, Request::GetStatus),
        (Kind::Have, Request::Have(Have { hashes: vec![] })),
        (
            Kind::PutBlob,
            Request::PutBlob(PutBlob {
                hash: SpecHash::of(b""),
                len: 0,
            }),
        ),
        (
            Kind::Publish,
            Request::Publish(Publish {
                key: None,
                note: String::new(),
                changes: vec![],
            }),
        ),
    ];
    for who in [
        "dev/coordinator/c1",
        "dev/worker/w1",
        "dev/publisher/p1",
        "dev/reader/r1",
    ] {
        let role = pair.certs.load(who).uri().role();
        let connection = connect(&pair, &client, who).await;
        for (kind, request) in &requests {
            let answer = raw_ask(&connection, &frame(request), true)
                .await
                .expect("an answer");
            let refused = matches!(&answer, Err(refusal) if refusal.code == Code::NotAllowed);
            assert_eq!(
                refused,
                !allowed(*kind, role, Role::Coordinator),
                "{who} {kind:?}: {answer:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_request_that_the_service_forgets_is_answered_all_the_same() {
    let pair = Pair::new();
    let link = pair.link();
    let request = Request::GetLog(GetLog {
        name: None,
        before: None,
        limit: 1,
    });
    let mut exchange = link
        .call(&request, Bytes::new(), patience())
        .await
        .expect("sent");
    match exchange.next().await.expect_err("refused") {
        LinkError::Refused(refusal) => assert_eq!(refusal.code, Code::Internal),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_room_comes_back() {
    let mut options = options();
    options.limits.max_connections = 1;
    let pair = Pair::with(options);
    let first = pair.link();
    status(&first).await.expect("the only one");
    let error = status(&pair.link()).await.expect_err("one too many");
    assert_eq!(error.kind(), "busy", "{error:?}");
    drop(first);
    let again = pair.link();
    let dial = Patience {
        dial_within: Some(Duration::ZERO),
        ..patience()
    };
    // The close of the first one is on its way.
    let call = async || {
        again
            .call(&Request::GetStatus, Bytes::new(), dial)
            .await
            .is_ok()
    };
    eventually(call).await;
}

#[tokio::test]
async fn a_call_that_has_the_time_waits_until_it_may_dial_again() {
    let mut options = options();
    options.limits.max_connections = 1;
    let pair = Pair::with(options);
    let first = pair.link();
    status(&first).await.expect("the only one");
    let again = pair.link();
    let soon = Some(Duration::ZERO);
    again.connect(soon).await.expect_err("one too many");
    drop(first);
    eventually(async || pair.coordinator.connections() == 0).await;
    let patient = Some(Duration::from_secs(60));
    again.connect(patient).await.expect("there is room");
}

#[tokio::test]
async fn a_dial_that_fails_after_a_call_began_is_its_answer() {
    let mut options = options();
    options.limits.max_connections = 1;
    let pair = Pair::with(options);
    let first = pair.link();
    status(&first).await.expect("the only one");
    let again = pair.link();
    for _ in 0..3 {
        let call = again.connect(Some(Duration::MAX));
        let ended = tokio::time::timeout(Duration::from_secs(10), call).await;
        let error = ended.expect("an answer").expect_err("one too many");
        assert_eq!(error.kind(), "busy", "{error:?}");
    }
}

#[tokio::test]
async fn a_crowded_node_wants_addresses_to_prove_themselves_and_takes_them_then() {
    let mut options = options();
    options.limits.max_connections = 2;
    let pair = Pair::with(options);
    let (first, second) = (pair.link(), pair.link());
    status(&first).await.expect("not crowded");
    status(&second).await.expect("proved itself");
    assert_eq!(pair.coordinator.connections(), 2);
}

#[tokio::test]
async fn waiting_requests_beyond_the_limit_are_answered_in_turn() {
    let mut options = options();
    options.limits.max_requests = 1;
    let pair = Pair::with(options);
    let link = pair.link();
    let list = life::list();
    let mut first = link
        .call(&list, Bytes::new(), patience())
        .await
        .expect("sent");
    pair.node.entered.notified().await;
    let second = tokio::spawn(async move { status(&link).await });
    pair.node.gate.notify_one();
    first.next().await.expect("the gate is open");
    second.await.expect("no panic").expect("its turn came");
}

/// Answers each acknowledgement that follows a watch with its revision.
struct Hearing;

impl Service for Hearing {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, _: Peer, _: Request, _: Bytes, reply: &mut Reply) {
        loop {
            let heard = match reply.hear().await {
                Ok(heard) => heard,
                Err(refusal) => return reply.refuse(&refusal).await.expect("it waits"),
            };
            for request in heard {
                let Request::PrepAck(ack) = request else {
                    panic!("{request:?}");
                };
                let json = ack.rev.to_string();
                let status = Response::Status(Status { json });
                reply.send(&status).await.expect("it waits");
            }
        }
    }
}

fn ack(rev: u64) -> Request {
    Request::PrepAck(PrepAck {
        sid: SessionId::new(7),
        epoch: Epoch::new(1),
        rev: Revision::new(rev),
    })
}

/// A coordinator that hears what follows a watch.
fn hearing(certs: &Certs, runtime: &Runtime) -> Endpoint {
    let coordinator = bind(runtime, certs.load("dev/coordinator/c1"), options());
    coordinator.serve(Arc::new(Hearing));
    coordinator
}

fn watch() -> Request {
    let sid = SessionId::new(7);
    Request::Watch(Watch { sid })
}

#[tokio::test]
async fn what_follows_a_watch_on_its_stream_is_heard_in_order() {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let coordinator = hearing(&certs, &runtime);
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options());
    let link = link(&worker, &coordinator, Wanted::Coordinator);
    let (mut exchange, further) = link
        .call_open(&watch(), patience())
        .await
        .expect("it is taken");
    for rev in 1..=100 {
        assert!(further.say(&ack(rev)), "there is room");
    }
    for rev in 1..=100 {
        match exchange.next().await.expect("an answer") {
            Response::Status(status) => assert_eq!(status.json, rev.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_frame_that_may_not_follow_a_watch_is_refused() {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let coordinator = hearing(&certs, &runtime);
    let client = raw(None);
    let tls = trust::client_config(&certs.load("dev/worker/w1"));
    let connection = raw_dial(&client, tls, &coordinator)
        .await
        .expect("connected");
    let answer = raw_ask(&connection, &frame(&hello()), true).await;
    assert!(matches!(answer, Ok(Ok(Response::Welcome(_)))), "{answer:?}");
    let publish = Request::Publish(Publish {
        key: None,
        note: String::new(),
        changes: Vec::new(),
    });
    for (what, bytes, code) in [
        ("an unknown tag", vec![0, 0, 0, 1, 200], Code::BadFrame),
        ("no length", vec![0, 0, 0, 0, 1], Code::BadFrame),
        ("a short header", vec![0, 0, 0, 2, 25, 0], Code::BadFrame),
        ("a long one", vec![0, 0, 8, 0, 25], Code::TooLarge),
        ("another role's", frame(&publish), Code::NotAllowed),
    ] {
        let bytes = [frame(&watch()), bytes].concat();
        let refusal = refusal(&connection, &bytes, false).await;
        assert_eq!(refusal.code, code, "{what}: {refusal}");
    }
}
