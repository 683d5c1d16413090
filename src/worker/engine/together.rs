//! Questions for bytes that leave together: what one node is asked for in the same moment is one
//! request, since a stream costs more than a short body.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::{Engine, Running, lock, no_member};
use crate::net::{Link, LinkError};
use crate::proto::limit::{MAX_BLOBS_PER_REQUEST, MAX_SHARED_BODY};
use crate::proto::wire::{GetBlobs, Request, Response};
use crate::proto::worker::{CallId, Event, Input, Source};
use crate::spec::{MAX_SPEC_LEN, SpecHash};
use crate::worker::call::{Trouble, failed, for_bytes, neighbours};

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub(super) call: CallId,
    pub(super) hash: SpecHash,
    /// Its length, where a record says so.
    pub(super) len: Option<u64>,
    /// What the most patient of its readers has left.
    pub(super) within: Duration,
}

/// Whom questions are for, and whether they are to be answered at once and with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct To {
    pub(super) source: Source,
    pub(super) force: bool,
}

/// Those that have not left. As many as fetches at most, and a moment each.
pub(super) type Waiting = BTreeMap<To, Vec<Question>>;

/// Questions that have left as one request.
#[derive(Debug)]
pub(super) struct Group {
    /// How many answers are still waited for.
    left: AtomicUsize,
    over: Notify,
}

impl Group {
    fn new(questions: usize) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(questions),
            over: Notify::new(),
        })
    }

    /// One of them has its answer, or is not waited for any more.
    pub(super) fn let_go(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.over.notify_one();
        }
    }
}

impl Engine {
    /// Adds a question to those that are about to leave. `addr`: where a peer listens that
    /// membership does not name.
    pub(super) fn add_question(self: &Arc<Self>, to: To, question: Question, addr: Option<String>) {
        lock(&self.calls).insert(question.call, Running::Waits);
        let is_first = {
            let mut waiting = lock(&self.waiting);
            let questions = waiting.entry(to).or_default();
            questions.push(question);
            questions.len() == 1
        };
        if is_first {
            let engine = Arc::clone(self);
            self.handle.spawn(async move {
                // Whatever else the machine wants in this moment is added meanwhile.
                tokio::task::yield_now().await;
                engine.ask_waiting(to, addr);
            });
        }
    }

    fn ask_waiting(self: &Arc<Self>, to: To, addr: Option<String>) {
        let mut questions = lock(&self.waiting).remove(&to).unwrap_or_default();
        let link = self.link_to(to.source, addr);
        let mut calls = lock(&self.calls);
        questions.retain(|question| calls.contains_key(&question.call));
        let is_long = |question: &Question| question.len.is_none_or(|len| len > MAX_SHARED_BODY);
        let (long, short): (Vec<_>, Vec<_>) = questions.into_iter().partition(is_long);
        for questions in short.chunks(MAX_BLOBS_PER_REQUEST).chain(long.chunks(1)) {
            let group = Group::new(questions.len());
            for question in questions {
                calls.insert(question.call, Running::Together(Arc::clone(&group)));
            }
            let (engine, link, questions) = (Arc::clone(self), link.clone(), questions.to_vec());
            self.handle.spawn(async move {
                let asked = engine.ask_group(to, link, &questions);
                tokio::select! {
                    () = asked => {}
                    // Nobody waits for the rest: the other side is told to stop.
                    () = group.over.notified() => {}
                }
            });
        }
    }

    async fn ask_group(self: &Arc<Self>, to: To, link: Option<Link>, questions: &[Question]) {
        let Some(link) = link else {
            for question in questions {
                self.answered(question.call, no_member());
            }
            return;
        };
        ask(&link, to, questions, |call, event| {
            self.count_taken(to.source, &link, &event);
            self.answered(call, event);
        })
        .await;
    }

    /// Hands an answer to the machine if it is still waited for.
    fn answered(self: &Arc<Self>, call: CallId, event: Event) {
        let is_waited_for = match event {
            Event::Held => lock(&self.calls).contains_key(&call),
            _ => match lock(&self.calls).remove(&call) {
                Some(Running::Together(group)) => {
                    group.let_go();
                    true
                }
                _ => false,
            },
        };
        if is_waited_for {
            self.drive(Input::Event { call, event });
        }
    }
}

/// Asks one node, and hands each answer to `sink` as it comes. Each question gets one, and perhaps
/// [`Event::Held`] before it.
async fn ask(link: &Link, to: To, questions: &[Question], sink: impl Fn(CallId, Event)) {
    let mut open: BTreeMap<u32, Question> = (0..).zip(questions.iter().copied()).collect();
    if let Err(trouble) = answers(link, to, &mut open, &sink).await {
        let event = failed(trouble);
        for question in open.into_values() {
            sink(question.call, event.clone());
        }
    }
}

/// Takes each question out of `open` that has been answered.
async fn answers(
    link: &Link,
    to: To,
    open: &mut BTreeMap<u32, Question>,
    sink: &impl Fn(CallId, Event),
) -> Result<(), Trouble> {
    let may_wait = to.source.is_peer() && !to.force;
    let may_point = !to.source.is_peer() && !to.force;
    let hashes = open.values().map(|question| question.hash).collect();
    let request = Request::GetBlobs(GetBlobs {
        hashes,
        force: to.force,
    });
    let within = open.values().map(|question| question.within).max();
    let patience = for_bytes(to.source, to.force, within.unwrap_or_default());
    let mut exchange = link.call(&request, Bytes::new(), patience).await?;
    while !open.is_empty() {
        let mut take = |index| open.remove(&index).ok_or(Trouble::Order);
        match exchange.next().await? {
            Response::BlobOf(blob) => {
                let question = take(blob.index)?;
                let max = question.len.unwrap_or(MAX_SPEC_LEN).min(MAX_SPEC_LEN);
                match exchange.body(max).await {
                    Ok(body) => sink(question.call, Event::Body(body)),
                    // Its length alone says that these are not the bytes: as good as wrong ones.
                    // What follows on this stream is not looked at.
                    Err(LinkError::TooLong { .. }) => {
                        sink(question.call, Event::Body(Bytes::new()));
                        return if open.is_empty() {
                            Ok(())
                        } else {
                            Err(Trouble::Order)
                        };
                    }
                    Err(error) => {
                        open.insert(blob.index, question);
                        return Err(error.into());
                    }
                }
            }
            Response::NoBlobOf(none) => {
                let question = take(none.index)?;
                sink(question.call, Event::Refused(none.refusal.into()));
            }
            Response::HoldersOf(holders) if may_point => {
                let question = take(holders.index)?;
                sink(question.call, Event::Pointed(neighbours(holders.ask)));
            }
            Response::Holding(()) if may_wait => {
                for question in open.values() {
                    sink(question.call, Event::Held);
                }
            }
            _ => return Err(Trouble::Order),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::identity::NodeId;
    use crate::net::{
        Congestion, Endpoint, EndpointOptions, Limits, Peer, Port, Reply, Runtime, Service,
        SessionKey, Wanted,
    };
    use crate::proto::wire::{BlobOf, HeadBytes, ProofBytes};
    use crate::spec::Spec;
    use crate::trust::{Identity, IdentityOptions, IdentityPaths, issue};

    /// Announces eleven bytes, whatever it is asked for.
    struct Liar;

    impl Service for Liar {
        fn catalog(&self, _: &SessionKey) -> Option<(HeadBytes, ProofBytes)> {
            None
        }

        async fn serve(&self, _: Peer, _: Request, _: Bytes, reply: &mut Reply) {
            let blob = Response::BlobOf(BlobOf { index: 0, len: 11 });
            // The asker may have seen enough.
            let _ = reply.send_with_body(&blob, "eleven byte".into()).await;
        }
    }

    #[tokio::test]
    async fn an_announced_length_that_the_record_rules_out_is_as_good_as_wrong_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        issue::throwaway(dir.path()).expect("throwaway");
        let runtime = Runtime::start().expect("a thread");
        let bind = |name: &str| {
            let paths = IdentityPaths::in_dir(&dir.path().join(name));
            let identity = Identity::load(paths, IdentityOptions::default()).expect("an identity");
            let options = EndpointOptions {
                reset_key: [7; 32],
                agent: "test".into(),
                max_spec_len: MAX_SPEC_LEN,
                limits: Limits::default(),
                congestion: Congestion::default(),
            };
            let addr = "127.0.0.1:0".parse().expect("an address");
            let port = Port::bind(addr, identity.uri().cluster()).expect("a port");
            Endpoint::start(runtime.handle(), port, identity, options).expect("started")
        };
        let (liar, asker) = (bind("dev/worker/w1"), bind("dev/worker/w2"));
        liar.serve(Arc::new(Liar));
        let link = Link::new(&asker, liar.local_addr().to_string(), Wanted::Peer);
        let hash = SpecHash::of(b"five!");
        let to = To {
            source: Source::Peer(NodeId::of_addr("liar")),
            force: true,
        };
        let question = |call| Question {
            call: CallId::from_raw(call),
            hash,
            len: Some(5),
            within: Duration::ZERO,
        };
        let events = Mutex::new(Vec::new());
        ask(&link, to, &[question(1), question(2)], |call, event| {
            events.lock().expect("no panic").push((call, event));
        })
        .await;
        match &events.into_inner().expect("no panic")[..] {
            [(first, Event::Body(body)), (second, Event::Failed { .. })] => {
                assert_eq!(
                    (*first, *second),
                    (CallId::from_raw(1), CallId::from_raw(2))
                );
                assert!(Spec::verify(hash, Some(5), body.clone()).is_err());
            }
            other => panic!("{other:?}"),
        }
    }
}
