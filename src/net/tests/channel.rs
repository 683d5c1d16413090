//! Packets between workers, beside requests.

use std::sync::Mutex;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::proto::limit::MAX_SHORT_STREAM;

/// Tells a test what it was told.
#[derive(Debug)]
struct Heard {
    packets: UnboundedSender<(String, Bytes)>,
    channels: Mutex<Vec<Channel>>,
    up: Notify,
}

impl Heard {
    fn at(endpoint: &Endpoint) -> (Arc<Self>, UnboundedReceiver<(String, Bytes)>) {
        let (packets, heard) = unbounded_channel();
        let carrier = Arc::new(Self {
            packets,
            channels: Mutex::default(),
            up: Notify::new(),
        });
        endpoint.carry(carrier.clone());
        (carrier, heard)
    }

    async fn channel(&self) -> Channel {
        self.up.notified().await;
        self.channels.lock().expect("whole")[0].clone()
    }
}

impl Carrier for Heard {
    fn up(&self, channel: &Channel) {
        self.channels.lock().expect("whole").push(channel.clone());
        self.up.notify_one();
    }

    fn packet(&self, channel: &Channel, packet: Bytes) {
        let _ = self.packets.send((channel.uri().name().to_owned(), packet));
    }

    fn down(&self, channel: &Channel) {
        let mut channels = self.channels.lock().expect("whole");
        channels.retain(|other| other.id() != channel.id());
        let gone = (channel.uri().name().to_owned(), Bytes::from_static(b"gone"));
        let _ = self.packets.send(gone);
    }
}

#[tokio::test]
async fn workers_send_each_other_short_and_long_packets_both_ways() {
    let certs = Certs::new();
    let runtime = Runtime::start().expect("a thread");
    let one = bind(&runtime, certs.load("dev/worker/w1"), options());
    let other = bind(&runtime, certs.load("dev/worker/w2"), options());
    let (at_one, mut heard_by_one) = Heard::at(&one);
    let (at_other, mut heard_by_other) = Heard::at(&other);
    other.serve(Arc::new(Node::default()));
    let link = link(&one, &other, Wanted::Peer);
    link.connect(Some(Duration::ZERO)).await.expect("up");
    let (dialled, accepted) = (at_one.channel().await, at_other.channel().await);
    assert!(dialled.is_dialled() && !accepted.is_dialled());

    let longest = Bytes::from(vec![7; MAX_SHORT_STREAM]);
    for packet in [Bytes::from_static(b"short"), longest.clone()] {
        runtime
            .handle()
            .spawn({
                let (dialled, accepted, packet) =
                    (dialled.clone(), accepted.clone(), packet.clone());
                async move {
                    dialled.send(packet.clone()).expect("sent");
                    accepted.send(packet).expect("sent");
                }
            })
            .await
            .expect("no panic");
        let heard = heard_by_other.recv().await;
        assert_eq!(heard, Some(("w1".to_owned(), packet.clone())));
        let heard = heard_by_one.recv().await;
        assert_eq!(heard, Some(("w2".to_owned(), packet)));
    }
    let too_long = Bytes::from(vec![7; MAX_SHORT_STREAM + 1]);
    assert_eq!(dialled.send(too_long), Err(Dropped));

    drop(link);
    let gone = Some(("w1".to_owned(), Bytes::from_static(b"gone")));
    assert_eq!(heard_by_other.recv().await, gone);
    assert!(!accepted.is_open());
}

#[tokio::test]
async fn a_node_that_is_no_worker_neither_sends_packets_nor_gets_any() {
    let certs = Certs::new();
    let runtime = Runtime::start().expect("a thread");
    let worker = bind(&runtime, certs.load("dev/worker/w1"), options());
    let (at_worker, _heard) = Heard::at(&worker);
    worker.serve(Arc::new(Node::default()));
    let reader = bind(&runtime, certs.load("dev/reader/r1"), options());
    let link = link(&reader, &worker, Wanted::Peer);
    link.connect(Some(Duration::ZERO)).await.expect("up");
    let status = link.call(&Request::GetStatus, Bytes::new(), patience());
    status.await.expect("answered");
    assert!(at_worker.channels.lock().expect("whole").is_empty());
}

#[tokio::test]
async fn a_dial_back_finds_who_is_there_and_nobody_else() {
    let certs = Certs::new();
    let runtime = Runtime::start().expect("a thread");
    let one = bind(&runtime, certs.load("dev/worker/w1"), options());
    let other = bind(&runtime, certs.load("dev/worker/w2"), options());
    other.serve(Arc::new(Node::default()));
    let (id_of_one, id_of_other) = (one.identity().uri().id(), other.identity().uri().id());
    let addr = other.local_addr();
    let dial_back = DialBack::new(&one);
    assert_eq!(dial_back.reaches(id_of_other, addr).await, Some(true));
    let stranger = dial_back.reaches(id_of_one, addr).await;
    assert_eq!(stranger, Some(false), "someone else is there");
    let again = dial_back.reaches(id_of_other, addr).await;
    assert_eq!(again, None, "not so soon");
}
