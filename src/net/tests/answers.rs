//! What an asker makes of an answer, from bare quinn that answers as badly as it can.

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::proto::code::Code;
use crate::proto::wire::FrameError;

/// What the bad peer does after it has read a request.
#[derive(Clone)]
enum Then {
    /// Ends the stream.
    Finish,
    /// Sends nothing more and keeps the stream open.
    Hold,
    /// Sends bytes until it is stopped.
    Forever,
}

struct BadPeer {
    link: Link,
    /// Told once the peer was stopped.
    stopped: oneshot::Receiver<()>,
    task: JoinHandle<()>,
    _runtime: Runtime,
    _certs: Certs,
}

impl Drop for BadPeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bad_peer(bytes: Vec<u8>, then: Then) -> BadPeer {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let server = raw(Some(trust::server_config(&certs.load("dev/worker/w2"))));
    let addr = server.local_addr().expect("bound").to_string();
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options());
    let (tell, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        let incoming = server.accept().await.expect("dialled");
        let connection = incoming.await.expect("a handshake");
        let (mut send, _recv) = connection.accept_bi().await.expect("hello");
        send.write_all(&welcome().to_frame().expect("small"))
            .await
            .expect("sent");
        send.finish().expect("open");
        let (mut send, _recv) = connection.accept_bi().await.expect("a request");
        let _ = send.write_all(&bytes).await;
        match then {
            Then::Finish => drop(send.finish()),
            Then::Hold => {}
            Then::Forever => while send.write_all(&[0; 1_000]).await.is_ok() {},
        }
        let _ = send.stopped().await;
        let _ = tell.send(());
        connection.closed().await;
    });
    BadPeer {
        link: Link::new(&worker, addr, Wanted::Peer),
        stopped,
        task,
        _runtime: runtime,
        _certs: certs,
    }
}

fn blob(len: u64, bytes: &[u8]) -> Vec<u8> {
    let frame = Response::Blob(Blob { len }).to_frame().expect("small");
    [&frame[..], bytes].concat()
}

async fn fetch(peer: &BadPeer) -> Result<Bytes, LinkError> {
    fetch_with(peer, patience()).await
}

async fn fetch_with(peer: &BadPeer, patience: Patience) -> Result<Bytes, LinkError> {
    let request = get_blob(1);
    let mut exchange = peer.link.call(&request, Bytes::new(), patience).await?;
    exchange.next().await?;
    exchange.body(MAX_SPEC_LEN).await
}

#[tokio::test]
async fn a_good_answer_is_read_whole_and_timed() {
    let pair = Pair::new();
    let link = pair.link();
    let mut exchange = link
        .call(&get_blob(3), Bytes::new(), patience())
        .await
        .expect("sent");
    assert_eq!(exchange.timing().first_frame, None);
    let len = BLOB_LEN as u64;
    assert_eq!(
        exchange.next().await.expect("a frame"),
        Response::Blob(Blob { len })
    );
    let body = exchange.body(MAX_SPEC_LEN).await.expect("a body");
    assert!(body.len() == BLOB_LEN && body.iter().all(|&byte| byte == 3));
    assert!(exchange.timing().first_frame.is_some());
    assert_eq!(exchange.peer(), pair.coordinator.identity().uri());
    let error = exchange.next().await.expect_err("the answer is over");
    assert!(matches!(error, LinkError::Short), "{error:?}");
}

#[tokio::test]
async fn a_short_body_is_an_error() {
    for bytes in [
        blob(10, b"12345"),
        blob(10, b""),
        blob(10, b"")[..3].to_vec(),
        Vec::new(),
    ] {
        let peer = bad_peer(bytes, Then::Finish);
        let error = fetch(&peer).await.expect_err("short");
        assert!(matches!(error, LinkError::Short), "{error:?}");
        assert!(error.is_peers_fault());
    }
}

#[tokio::test]
async fn an_endless_body_is_cut_and_stopped() {
    let mut peer = bad_peer(blob(10, b"0123456789"), Then::Forever);
    assert_eq!(
        fetch(&peer).await.expect("its length is right"),
        &b"0123456789"[..]
    );
    (&mut peer.stopped).await.expect("the peer was stopped");
}

#[tokio::test]
async fn a_body_that_claims_too_much_is_not_read() {
    let mut peer = bad_peer(blob(MAX_SPEC_LEN + 1, b""), Then::Forever);
    let error = fetch(&peer).await.expect_err("too long");
    assert!(
        matches!(
            error,
            LinkError::TooLong {
                max: MAX_SPEC_LEN,
                ..
            }
        ),
        "{error:?}"
    );
    (&mut peer.stopped).await.expect("the peer was stopped");
}

#[tokio::test]
async fn silence_ends_at_the_deadline_of_the_first_byte() {
    let mut peer = bad_peer(Vec::new(), Then::Hold);
    let patience = Patience {
        first_byte: Duration::from_millis(100),
        ..patience()
    };
    let error = fetch_with(&peer, patience).await.expect_err("silence");
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
    (&mut peer.stopped).await.expect("the peer was stopped");
}

#[tokio::test]
async fn a_drip_is_slower_than_the_floor() {
    for bytes in [blob(MAX_SPEC_LEN, b"1"), blob(10, b"")[..3].to_vec()] {
        let peer = bad_peer(bytes, Then::Hold);
        let patience = Patience {
            floor: QUICK,
            ..patience()
        };
        let error = fetch_with(&peer, patience).await.expect_err("too slow");
        assert!(matches!(error, LinkError::TooSlow { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_the_peers_fault() {
    for bytes in [
        vec![0, 0, 0, 1, 200],
        vec![0xff; 5],
        vec![0, 0, 0, 0, 7],
        frame(&Request::GetStatus),
    ] {
        let peer = bad_peer(bytes, Then::Hold);
        let error = fetch(&peer).await.expect_err("no answer");
        assert!(matches!(error, LinkError::BadAnswer(_)), "{error:?}");
        assert!(error.is_peers_fault());
    }
}

#[tokio::test]
async fn a_refusal_is_the_answer() {
    let refusal = Refusal::new(Code::NotFound, "no such blob here");
    let peer = bad_peer(crate::proto::wire::refusal_frame(&refusal), Then::Finish);
    match fetch(&peer).await.expect_err("refused") {
        LinkError::Refused(got) => assert_eq!(got, refusal),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_frame_is_not_read_out_of_an_unread_body() {
    let peer = bad_peer(blob(10, b"0123456789"), Then::Hold);
    let request = get_blob(1);
    let call = peer.link.call(&request, Bytes::new(), patience());
    let mut exchange = call.await.expect("sent");
    exchange.next().await.expect("a frame");
    let error = exchange.next().await.expect_err("a body comes first");
    assert!(
        matches!(error, LinkError::BadAnswer(FrameError::Value(_))),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_exchange_that_is_dropped_stops_the_peer() {
    let mut peer = bad_peer(Vec::new(), Then::Hold);
    let request = get_blob(1);
    let call = peer.link.call(&request, Bytes::new(), patience());
    drop(call.await.expect("sent"));
    (&mut peer.stopped).await.expect("the peer was stopped");
}
