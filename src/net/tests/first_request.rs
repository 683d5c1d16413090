//! Requests that leave together with the hello of their connection: what goes out before the
//! welcome, and that nothing comes of it without one.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::oneshot;

use super::*;
use crate::proto::code::CloseCode;

/// A coordinator of bare quinn, and a worker that dials it.
struct Bare {
    server: quinn::Endpoint,
    worker: Endpoint,
    _certs: Certs,
    _runtime: Runtime,
}

impl Bare {
    fn with(options: EndpointOptions) -> Self {
        let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
        let tls = trust::server_config(&certs.load("dev/coordinator/c1"));
        Self {
            server: raw(Some(tls)),
            worker: bind(&runtime, certs.load("dev/worker/w1"), options),
            _certs: certs,
            _runtime: runtime,
        }
    }

    fn addr(&self) -> String {
        self.server.local_addr().expect("bound").to_string()
    }

    /// What the worker opens on its first connection: the stream of its hello, and that of a
    /// request. Neither is answered yet.
    async fn opened(&self) -> (quinn::Connection, [quinn::SendStream; 2]) {
        let incoming = self.server.accept().await.expect("dialled");
        let connection = incoming.await.expect("a handshake");
        let mut streams = Vec::new();
        for sent in [frame(&hello()), frame(&Request::GetStatus)] {
            let (send, mut recv) = connection.accept_bi().await.expect("a stream");
            let mut prefix = [0; FRAME_PREFIX_LEN];
            recv.read_exact(&mut prefix).await.expect("a frame");
            assert_eq!(prefix[4], sent[4], "the kind");
            streams.push(send);
        }
        (connection, streams.try_into().expect("two"))
    }
}

async fn answer(stream: &mut quinn::SendStream, response: &Response) {
    let frame = response.to_frame().expect("small");
    stream.write_all(&frame).await.expect("sent");
    stream.finish().expect("open");
    // The other end has it, whether it has read it or not.
    stream.stopped().await.expect("acknowledged");
}

fn some_status() -> Response {
    Response::Status(Status {
        json: "early".to_owned(),
    })
}

#[tokio::test]
async fn a_request_leaves_with_the_hello_and_its_answer_is_read_after_the_welcome() {
    let bare = Bare::with(options());
    let link = Link::new(&bare.worker, bare.addr(), Wanted::Coordinator);
    let asked = tokio::spawn(async move { status(&link).await });
    let (connection, [mut greeted, mut request]) = bare.opened().await;
    answer(&mut request, &some_status()).await;
    assert!(!asked.is_finished(), "an answer without a welcome");
    answer(&mut greeted, &welcome()).await;
    let answer = asked.await.expect("no panic");
    assert_eq!(answer.expect("welcomed"), "early");
    drop(connection);
}

/// Believes nobody.
#[derive(Debug)]
struct Nobody;

impl Vouch for Nobody {
    fn vouch(&self, _: &SessionKey, _: &Welcome) -> Result<(), String> {
        Err("nobody is believed".to_owned())
    }
}

#[tokio::test]
async fn an_answer_before_a_welcome_that_is_not_believed_is_none() {
    let bare = Bare::with(options());
    let vouch = Arc::new(Nobody);
    let link = Link::vouched(&bare.worker, bare.addr(), Wanted::Coordinator, vouch);
    let asked = tokio::spawn(async move { status(&link).await });
    let (connection, [mut greeted, mut request]) = bare.opened().await;
    answer(&mut request, &some_status()).await;
    let frame = welcome().to_frame().expect("small");
    greeted.write_all(&frame).await.expect("sent");
    let error = asked.await.expect("no panic").expect_err("unproven");
    assert!(matches!(error, LinkError::Unproven(_)), "{error:?}");
    connection.closed().await;
}

#[tokio::test]
async fn what_was_sent_without_a_welcome_is_never_said_not_to_have_been_sent() {
    let mut options = options();
    options.limits.dial = Duration::from_millis(300);
    let bare = Bare::with(options);
    let link = Link::new(&bare.worker, bare.addr(), Wanted::Coordinator);
    let asked = tokio::spawn(async move { status(&link).await });
    let (connection, [_greeted, mut request]) = bare.opened().await;
    let frame = some_status().to_frame().expect("small");
    request.write_all(&frame).await.expect("sent");
    let error = asked.await.expect("no panic").expect_err("no welcome");
    assert!(matches!(error, LinkError::TimedOut { .. }), "{error:?}");
    connection.closed().await;
}

/// Counts what it is asked.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Service for Counting {
    fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
        None
    }

    async fn serve(&self, _: Peer, _: Request, _: Bytes, reply: &mut Reply) {
        self.0.fetch_add(1, Ordering::Relaxed);
        let _ = reply.send(&some_status()).await;
    }
}

/// What comes of a request that is there before `first` has been said on the first stream.
async fn asked_before(first: &[u8]) -> (Result<Response, LinkError>, usize) {
    let (certs, runtime) = (Certs::new(), Runtime::start().expect("a thread"));
    let coordinator = bind(&runtime, certs.load("dev/coordinator/c1"), options());
    let service = Arc::new(Counting::default());
    coordinator.serve(service.clone());
    let client = raw(None);
    let tls = trust::client_config(&certs.load("dev/worker/w1"));
    let connection = raw_dial(&client, tls, &coordinator).await;
    let connection = connection.expect("connected");
    let (mut greeting, _welcome) = connection.open_bi().await.expect("a stream");
    let (there, is_there) = oneshot::channel();
    let asking = connection.clone();
    let asked = tokio::spawn(async move {
        let (mut send, recv) = asking.open_bi().await.expect("a stream");
        let request = frame(&Request::GetStatus);
        send.write_all(&request).await.expect("sent");
        send.finish().expect("open");
        let arrived = send.stopped().await;
        let _ = there.send(arrived.is_ok());
        read(recv).await
    });
    assert!(is_there.await.expect("told"), "the server has it");
    assert_eq!(service.0.load(Ordering::Relaxed), 0, "before the hello");
    let _ = greeting.write_all(first).await;
    let _ = greeting.finish();
    let answer = asked.await.expect("no panic");
    (answer, service.0.load(Ordering::Relaxed))
}

async fn read(mut recv: quinn::RecvStream) -> Result<Response, LinkError> {
    let bytes = recv
        .read_to_end(1 << 10)
        .await
        .map_err(|error| match error {
            quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => error.into(),
            _ => LinkError::Short,
        })?;
    let (prefix, header) = bytes.split_at(FRAME_PREFIX_LEN);
    let (tag, _) = parse_prefix(prefix.try_into().expect("its length"))?;
    decode_answer(tag, header)?.map_err(LinkError::Refused)
}

#[tokio::test]
async fn a_request_from_before_the_hello_is_answered_after_it() {
    let (answer, served) = asked_before(&frame(&hello())).await;
    assert_eq!(answer.expect("an answer"), some_status());
    assert_eq!(served, 1);
}

#[tokio::test]
async fn without_a_good_hello_no_request_is_served() {
    for first in [frame(&Request::GetStatus), vec![0, 0, 0, 1, 200], vec![]] {
        let (answer, served) = asked_before(&first).await;
        let error = answer.expect_err("closed");
        assert!(
            matches!(error, LinkError::Closed(CloseCode::BadHello)),
            "{error:?}"
        );
        assert_eq!(served, 0);
    }
}
