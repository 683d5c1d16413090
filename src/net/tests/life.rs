//! How connections begin, go on and end.

use std::net::UdpSocket;

use rustls::pki_types::UnixTime;

use super::*;
use crate::identity::Role;
use crate::proto::code::{CloseCode, Code};
use crate::proto::wire::List;
use crate::trust::Untrusted;

pub(super) fn list() -> Request {
    Request::List(List {
        at: None,
        prefix: String::new(),
        after: None,
        deleted: false,
        limit: 1,
    })
}

#[tokio::test]
async fn all_who_wait_share_one_connection() {
    let pair = Pair::new();
    let link = pair.link();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let link = link.clone();
            tokio::spawn(async move { status(&link).await })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("an answer");
    }
    assert_eq!(pair.coordinator.connections(), 1);
    assert_eq!(pair.worker.connections(), 1);
}

#[tokio::test]
async fn a_silent_address_costs_one_dial_and_is_named() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let mut options = options();
    options.limits.dial = Duration::from_millis(100);
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options);
    let addr = silent.local_addr().expect("bound").to_string();
    let link = Link::new(&worker, &addr, Wanted::Peer);
    let error = status(&link).await.expect_err("silence");
    assert_eq!(error.kind(), "dial-timeout", "{error:?}");
    assert!(error.to_string().contains(&addr), "{error}");
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_dial_that_is_given_up_at_hello_leaves_no_connection() {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let server = raw(Some(trust::server_config(
        &certs.load("dev/coordinator/c1"),
    )));
    let mut options = options();
    options.limits.dial = Duration::from_millis(300);
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options);
    let addr = server.local_addr().expect("bound").to_string();
    let link = Link::new(&worker, addr, Wanted::Coordinator);
    // The handshake is answered, the hello never is.
    let silent = tokio::spawn(async move {
        let incoming = server.accept().await.expect("a dial");
        incoming.await.expect("a handshake").closed().await
    });
    // On a busy machine the wait for the welcome may end before that for the dial.
    status(&link).await.expect_err("silence");
    eventually(async || worker.connections() == 0).await;
    let closed = tokio::time::timeout(Duration::from_secs(10), silent);
    let closed = closed.await.expect("it stays open").expect("no panic");
    let code = CloseCode::Done.number().into();
    assert!(
        matches!(&closed, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == code),
        "{closed:?}"
    );
}

#[tokio::test]
async fn addresses_that_make_no_sense_say_so() {
    let pair = Pair::new();
    // No question to a resolver can hold it, so none is sent.
    let too_long = format!("{}:1", "a".repeat(300));
    for (addr, kind) in [
        (&*too_long, "dns"),
        ("no-port", "dns"),
        ("[::1]:1", "unreachable"),
        ("127.0.0.1:0", "unreachable"),
    ] {
        let error = status(&Link::new(&pair.worker, addr, Wanted::Peer)).await;
        let error = error.expect_err("unreachable");
        assert_eq!(error.kind(), kind, "{addr}: {error:?}");
    }
}

#[tokio::test]
async fn revoking_a_peer_closes_its_live_connection_and_refuses_the_next() {
    let pair = Pair::new();
    let link = pair.link();
    status(&link).await.expect("trusted");
    let uri = pair.worker.identity().uri();
    let path = pair.certs.path("dev/coordinator/c1/trust.yaml");
    let trust = fs::read_to_string(&path).expect("there");
    fs::write(
        &path,
        trust.replace("revoked:\n", &format!("revoked:\n- {uri}\n")),
    )
    .expect("write");

    let mut waiting = link
        .call(&list(), Bytes::new(), patience())
        .await
        .expect("sent");
    pair.node.entered.notified().await;
    assert!(pair.coordinator.identity().reload().expect("a good file"));
    let error = waiting.next().await.expect_err("closed");
    assert!(
        matches!(error, LinkError::Closed(CloseCode::Revoked)),
        "{error:?}"
    );
    pair.node.gate.notify_one();
    let error = status(&link).await.expect_err("refused");
    assert!(
        matches!(error, LinkError::SelfUntrusted(Untrusted::Revoked)),
        "{error:?}"
    );
}

#[tokio::test]
async fn revoking_whom_one_has_dialled_closes_the_link() {
    let pair = Pair::new();
    let link = pair.link();
    let mut waiting = link
        .call(&list(), Bytes::new(), patience())
        .await
        .expect("sent");
    pair.node.entered.notified().await;
    let uri = pair.coordinator.identity().uri();
    let path = pair.certs.path("dev/worker/w1/trust.yaml");
    let trust = fs::read_to_string(&path).expect("there");
    fs::write(
        &path,
        trust.replace("revoked:\n", &format!("revoked:\n- {uri}\n")),
    )
    .expect("write");
    assert!(pair.worker.identity().reload().expect("a good file"));
    let error = waiting.next().await.expect_err("closed");
    assert!(matches!(error, LinkError::ClosedHere), "{error:?}");
    let error = status(&link).await.expect_err("refused");
    assert!(
        matches!(error, LinkError::PeerUntrusted(Untrusted::Revoked)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_certificate_that_expires_closes_its_live_connection() {
    let pair = Pair::new();
    let link = pair.link();
    let mut waiting = link
        .call(&list(), Bytes::new(), patience())
        .await
        .expect("sent");
    pair.node.entered.notified().await;
    let shared = &pair.coordinator.0;
    let now = UnixTime::now();
    assert_eq!(shared.live.check_again(&shared.identity, now).await, 0);
    let later = Duration::from_secs(now.as_secs() + 101 * 366 * 24 * 3600);
    let later = UnixTime::since_unix_epoch(later);
    assert_eq!(shared.live.check_again(&shared.identity, later).await, 1);
    let error = waiting.next().await.expect_err("closed");
    assert!(
        matches!(error, LinkError::Closed(CloseCode::Expired)),
        "{error:?}"
    );
    assert!(error.is_lost(), "a new connection may do");
    let hint = error.hint().expect("what to do");
    assert!(!hint.contains("revoked"), "{hint}");
    pair.node.gate.notify_one();
    status(&link).await.expect("a new connection does");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_at_once_and_old_connections_stay() {
    let ca = tempfile::tempdir().expect("a temporary directory");
    issue::init(ca.path(), "test.example").expect("init");
    let mut order = issue::Order {
        role: Role::Coordinator,
        name: "c1".to_owned(),
        valid_for: issue::NODE_VALIDITY,
        out: None,
        force: true,
    };
    let coordinator = issue::issue(ca.path(), &order).expect("issue");
    order.role = Role::Worker;
    let worker = issue::issue(ca.path(), &order).expect("issue");
    let runtime = Runtime::start().expect("a thread");
    let coordinator_id = load(&coordinator.dir);
    let server = bind(&runtime, coordinator_id.clone(), options());
    server.serve(Arc::new(Node::default()));
    let worker = bind(&runtime, load(&worker.dir), options());
    let before = link(&worker, &server, Wanted::Coordinator);
    status(&before).await.expect("the first certificate");

    order.role = Role::Coordinator;
    issue::issue(ca.path(), &order).expect("renew");
    assert!(coordinator_id.reload().expect("a good pair"));
    let after = link(&worker, &server, Wanted::Coordinator);
    status(&after).await.expect("the new certificate");
    status(&before).await.expect("the old connection");
    assert_eq!(worker.connections(), 2);
}

#[tokio::test]
async fn a_node_that_was_renewed_dials_anew_and_lets_calls_finish() {
    let ca = tempfile::tempdir().expect("a temporary directory");
    issue::init(ca.path(), "test.example").expect("init");
    let order = |role, force| issue::Order {
        role,
        name: "n".to_owned(),
        valid_for: issue::NODE_VALIDITY,
        out: None,
        force,
    };
    let issue = |role, force| issue::issue(ca.path(), &order(role, force)).expect("issue");
    let runtime = Runtime::start().expect("a thread");
    let server_dir = issue(Role::Coordinator, false).dir;
    let server = bind(&runtime, load(&server_dir), options());
    let node = Arc::new(Node::default());
    server.serve(node.clone());
    let dir = issue(Role::Worker, false).dir;
    let worker = bind(&runtime, load(&dir), options());
    let link = link(&worker, &server, Wanted::Coordinator);
    let mut waiting = link
        .call(&list(), Bytes::new(), patience())
        .await
        .expect("sent");
    node.entered.notified().await;

    issue(Role::Worker, true);
    assert!(worker.identity().reload().expect("a good pair"));
    let renewed = worker.identity().current().certificate().to_vec();
    eventually(async || {
        status(&link).await.expect("either connection");
        server.0.live.chains().contains(&renewed)
    })
    .await;
    assert_eq!(server.connections(), 2, "a call is still in progress");
    node.gate.notify_one();
    waiting.next().await.expect("over the old connection");
    drop(waiting);
    eventually(async || server.0.live.chains() == [renewed.clone()]).await;
    status(&link).await.expect("over the new connection");
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_at_once() {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let first = Runtime::start().expect("a thread");
    let identity = certs.load("dev/coordinator/c1");
    let server = bind(&first, identity.clone(), options());
    server.serve(Arc::new(Node::default()));
    let addr = server.local_addr();
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options());
    let link = Link::new(&worker, addr.to_string(), Wanted::Coordinator);
    status(&link).await.expect("up");

    // Not a word of farewell.
    first.stop();
    drop(server);
    let second = Runtime::start().expect("a thread");
    let server = bind_to(addr, &second, identity, options());
    server.serve(Arc::new(Node::default()));
    // Its patience is shorter than the idle timeout of the transport.
    let error = status(&link).await.expect_err("the old connection is gone");
    assert!(
        matches!(&error, LinkError::Lost(why) if why.contains("restarted")),
        "{error:?}"
    );
    status(&link).await.expect("a new connection");
}

#[tokio::test]
async fn a_drain_lets_requests_finish_refuses_new_ones_and_says_so() {
    let pair = Pair::new();
    let link = pair.link();
    let mut waiting = link
        .call(&list(), Bytes::new(), patience())
        .await
        .expect("sent");
    pair.node.entered.notified().await;
    let coordinator = pair.coordinator.clone();
    let drain = pair
        .runtime
        .handle()
        .spawn(async move { coordinator.drain(Duration::from_secs(10)).await });
    // The drain has begun once a new request is refused.
    loop {
        match status(&link).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(LinkError::Refused(refusal)) => break assert_eq!(refusal.code, Code::Draining),
            Err(other) => panic!("{other:?}"),
        }
    }
    let newcomer = pair.link();
    assert_eq!(
        newcomer.connect(None).await.expect_err("draining").kind(),
        "busy"
    );

    pair.node.gate.notify_one();
    waiting.next().await.expect("it may finish");
    assert!(drain.await.expect("no panic"), "all had finished");
    let error = waiting.next().await;
    assert!(error.is_err());
    let error = status(&link).await.expect_err("gone");
    assert_ne!(error.kind(), "refused", "{error:?}");
    assert_eq!(pair.coordinator.connections(), 0);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let pair = Pair::new();
    let link = pair.link();
    let mut waiting = link
        .call(&list(), Bytes::new(), patience())
        .await
        .expect("sent");
    pair.node.entered.notified().await;
    let coordinator = pair.coordinator.clone();
    let drain = async move { coordinator.drain(Duration::from_millis(10)).await };
    let drain = pair.runtime.handle().spawn(drain);
    let error = waiting.next().await.expect_err("closed");
    assert!(
        matches!(error, LinkError::Closed(CloseCode::Draining)),
        "{error:?}"
    );
    assert!(!drain.await.expect("no panic"), "one had not finished");
}

#[tokio::test]
async fn garbage_on_the_port_changes_nothing() {
    let pair = Pair::new();
    let link = pair.link();
    status(&link).await.expect("up");
    let garbage = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let to = pair.coordinator.local_addr();
    for len in 0..1_200 {
        let mut packet = vec![0; len];
        rand::fill(&mut packet[..]);
        garbage.send_to(&packet, to).expect("sent");
        // The long header of a first packet, with nonsense in it.
        if let Some(first) = packet.first_mut() {
            *first |= 0xc0;
        }
        garbage.send_to(&packet, to).expect("sent");
    }
    status(&link).await.expect("the old connection");
    status(&pair.link()).await.expect("a new connection");
}

#[tokio::test]
async fn a_dropped_link_closes_its_connection() {
    let pair = Pair::new();
    let link = pair.link();
    status(&link).await.expect("up");
    drop(link);
    eventually(async || pair.coordinator.connections() + pair.worker.connections() == 0).await;
}
