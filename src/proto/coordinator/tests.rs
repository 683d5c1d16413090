//! The machine against a disk that is a list of entries, some of which fail.

use super::*;
use crate::catalog::{Content, Epoch, HeadKey};
use crate::proto::limit::DEFAULT_LEASE;
use crate::proto::wire::{GetLog, List, Peering, PublishName, Resolve, ResolveName};
use crate::spec::SpecName;

const NOW: Time = Time::from_micros(0);
const DAY_MS: u64 = 24 * 3600 * 1000;

/// A coordinator with a journal in memory; `drive` completes every write.
struct Site {
    machine: Coordinator,
    journal: Vec<Entry>,
    replies: Vec<(Ticket, Result<PublishedRev, Refusal>)>,
    /// Pushes, grants and pins.
    others: Vec<Output>,
    unix_ms: u64,
    now: Time,
}

fn key() -> Arc<HeadKey> {
    Arc::new(HeadKey::from_bytes([1; 32]))
}

fn name(text: &str) -> SpecName {
    text.parse().expect("a name")
}

fn put(text: &str, body: &str) -> PublishName {
    PublishName {
        name: name(text),
        hash: Some(SpecHash::of(body.as_bytes())),
        len: body.len() as u64,
        expect: None,
    }
}

fn delete(text: &str) -> PublishName {
    PublishName {
        name: name(text),
        hash: None,
        len: 0,
        expect: None,
    }
}

fn publish(changes: Vec<PublishName>) -> Publish {
    Publish {
        key: None,
        note: String::new(),
        changes,
    }
}

fn replay(journal: &[Entry]) -> Result<Ledger, ReplayError> {
    let (first, rest) = journal.split_first().expect("a genesis");
    let mut ledger = Ledger::begin(first)?;
    for entry in rest {
        ledger.replay(entry.clone())?;
    }
    ledger.finish()
}

impl Site {
    fn new() -> Self {
        let genesis = Coordinator::genesis(CatalogId::from_bytes([9; 16]), &*key());
        Self::open(vec![genesis])
    }

    fn open(journal: Vec<Entry>) -> Self {
        let ledger = replay(&journal).expect("a good journal");
        let mut site = Self {
            machine: Coordinator::new(ledger, key(), Options::default(), 0, NOW),
            journal,
            replies: Vec::new(),
            others: Vec::new(),
            unix_ms: 1_000_000,
            now: NOW,
        };
        site.drive(Input::Wake);
        site
    }

    /// Hands in `input` and returns the write that it starts, replies noted.
    fn step(&mut self, input: Input) -> Option<Vec<Entry>> {
        let mut write = None;
        for output in self.machine.handle(input, self.now) {
            match output {
                Output::Write(entries) => write = Some(entries),
                Output::Checkpoint { entries, .. } => self.journal = entries,
                Output::Reply { ticket, result } => self.replies.push((ticket, result)),
                other @ (Output::EndStream(_)
                | Output::Push { .. }
                | Output::Granted { .. }
                | Output::PinReply { .. }) => {
                    self.others.push(other);
                }
                Output::Reveal(view) => assert!(view.head.verify(&key().pinned()).is_ok()),
            }
        }
        write
    }

    fn drive(&mut self, input: Input) {
        let mut write = self.step(input);
        while let Some(entries) = write {
            self.journal.extend(entries);
            write = self.step(Input::Written(Written::All));
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.drive(Input::Wake);
    }

    fn input(&self, ticket: Ticket, publish: Publish) -> Input {
        Input::Publish {
            ticket,
            by: "spiffe://c/publisher/p".into(),
            publish,
            unix_ms: self.unix_ms,
        }
    }

    fn publish(&mut self, publish: Publish) -> Result<PublishedRev, Refusal> {
        let input = self.input(7, publish);
        self.drive(input);
        let (ticket, result) = self.replies.pop().expect("an answer");
        assert_eq!(ticket, 7);
        result
    }

    fn rev_of(&self, text: &str) -> Option<u64> {
        let version = self.machine.view().records.get(&name(text))?;
        (version.content != Content::Deleted).then_some(version.rev.get())
    }
}

#[test]
fn a_publish_is_answered_after_two_writes_and_not_before() {
    let mut site = Site::new();
    let input = site.input(1, publish(vec![put("a", "1")]));
    let pending = site.step(input).expect("a write");
    assert!(matches!(&pending[..], [Entry::Pending(_)]));
    assert_eq!(site.rev_of("a"), None, "pending is not visible");

    let visible = site.step(Input::Written(Written::All)).expect("a write");
    assert!(matches!(&visible[..], [Entry::Visible { .. }]));
    assert!(site.replies.is_empty(), "durable is not yet visible");
    assert_eq!(site.rev_of("a"), None);

    assert!(site.step(Input::Written(Written::All)).is_none());
    assert_eq!(site.rev_of("a"), Some(1));
    let rev = site.replies[0].1.as_ref().expect("published").rev;
    assert_eq!(rev, Revision::new(1));
}

#[test]
fn what_arrives_during_a_write_shares_the_next_one() {
    let mut site = Site::new();
    let mut write = None;
    for (ticket, text) in ["a", "b", "c"].into_iter().enumerate() {
        let input = site.input(ticket as u64, publish(vec![put(text, "1")]));
        write = write.or(site.step(input));
    }
    assert_eq!(write.expect("the first alone").len(), 1);
    let second = site.step(Input::Written(Written::All)).expect("a write");
    assert_eq!(second.len(), 3, "visible 1, pending 2 and 3: {second:?}");
    let third = site.step(Input::Written(Written::All)).expect("a write");
    assert_eq!(
        third,
        [Entry::Visible {
            rev: Revision::new(3)
        }]
    );
    site.step(Input::Written(Written::All));
    let order: Vec<_> = site.replies.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn a_publish_that_changes_nothing_makes_no_revision() {
    let mut site = Site::new();
    site.publish(publish(vec![put("a", "1")]))
        .expect("published");
    let again = site
        .publish(publish(vec![put("a", "1")]))
        .expect("no change");
    assert_eq!((again.rev.get(), again.changed), (1, 0));
    let gone = site
        .publish(publish(vec![delete("never")]))
        .expect("no change");
    assert_eq!((gone.rev.get(), gone.changed), (1, 0));
}

#[test]
fn a_publish_that_equals_a_pending_one_waits_for_it() {
    let mut site = Site::new();
    let input = site.input(1, publish(vec![put("a", "1")]));
    site.step(input).expect("a write");
    let input = site.input(2, publish(vec![put("a", "1")]));
    site.step(input);
    assert!(site.replies.is_empty(), "neither is visible");
    site.step(Input::Written(Written::All));
    site.step(Input::Written(Written::All));
    let revs: Vec<_> = site
        .replies
        .iter()
        .map(|(ticket, result)| (*ticket, result.as_ref().expect("published").rev.get()))
        .collect();
    assert_eq!(revs, [(1, 1), (2, 1)]);
}

#[test]
fn expect_is_compared_with_a_pending_record_too() {
    let mut site = Site::new();
    let input = site.input(1, publish(vec![put("a", "1")]));
    site.step(input);
    let mut change = put("a", "2");
    change.expect = Some(Revision::ZERO);
    let input = site.input(2, publish(vec![change]));
    site.step(input);
    assert!(site.replies.is_empty(), "a crash could still take it back");
    site.step(Input::Written(Written::All));
    let (ticket, result) = site.replies.pop().expect("refused, the first is pending");
    let refusal = result.expect_err("it exists, pending");
    assert_eq!(
        (ticket, refusal.code, refusal.rev),
        (2, Code::Expect, Some(Revision::new(1)))
    );
}

#[test]
fn nobody_is_refused_for_a_revision_that_never_was() {
    let failures = [
        Written::Some {
            kept: 0,
            why: NotWritten::Full,
        },
        Written::Lost {
            reason: "gone".into(),
        },
    ];
    for (failure, expected) in failures.into_iter().zip([Code::Busy, Code::Disk]) {
        let mut site = Site::new();
        let input = site.input(1, publish(vec![put("a", "1")]));
        site.step(input);
        let change = PublishName {
            expect: Some(Revision::ZERO),
            ..put("a", "2")
        };
        let input = site.input(2, publish(vec![change]));
        site.step(input);
        site.step(Input::Written(failure));
        let refusals: BTreeMap<_, _> = site.replies.drain(..).collect();
        let refusal = refusals[&2].as_ref().expect_err("nothing was published");
        assert_eq!((refusal.code, refusal.rev), (expected, None));
    }
}

#[test]
fn expect_zero_means_absent_or_deleted() {
    let mut site = Site::new();
    let create = |body: &str| PublishName {
        expect: Some(Revision::ZERO),
        ..put("a", body)
    };
    site.publish(publish(vec![create("1")])).expect("created");
    assert!(site.publish(publish(vec![create("2")])).is_err());
    site.publish(publish(vec![delete("a")])).expect("deleted");
    site.publish(publish(vec![create("2")]))
        .expect("created again");
    let update = PublishName {
        expect: Some(Revision::new(3)),
        ..put("a", "3")
    };
    assert_eq!(
        site.publish(publish(vec![update]))
            .expect("updated")
            .rev
            .get(),
        4
    );
}

#[test]
fn one_bad_name_refuses_the_whole_publish() {
    let mut site = Site::new();
    let lost = PublishName {
        expect: Some(Revision::new(5)),
        ..put("b", "1")
    };
    let refusal = site
        .publish(publish(vec![put("a", "1"), lost]))
        .expect_err("lost");
    assert_eq!(
        (refusal.code, refusal.name),
        (Code::Expect, Some(name("b")))
    );
    assert_eq!(site.rev_of("a"), None);
    for bad in [
        vec![],
        vec![put("a", "1"), put("a", "2")],
        vec![put("a", "")],
        vec![PublishName {
            len: 1 << 30,
            ..put("a", "1")
        }],
        vec![PublishName {
            len: 1,
            ..delete("a")
        }],
    ] {
        let refusal = site.publish(publish(bad)).expect_err("bad form");
        assert_eq!(refusal.code, Code::Invalid);
    }
    assert_eq!(site.journal.len(), 1, "nothing was written");
}

#[test]
fn a_repeated_key_gets_the_first_answer_also_after_a_restart() {
    let mut site = Site::new();
    let keyed = |body: &str| Publish {
        key: Some([5; 16]),
        ..publish(vec![put("a", body)])
    };
    let first = site.publish(keyed("1")).expect("published");
    site.publish(publish(vec![put("a", "2")]))
        .expect("published");
    assert_eq!(site.publish(keyed("1")).as_ref(), Ok(&first));
    assert_eq!(site.rev_of("a"), Some(2), "the repetition changed nothing");
    let reused = site.publish(keyed("3")).expect_err("other content");
    assert_eq!(reused.code, Code::KeyReused);

    let mut site = Site::open(site.journal);
    assert_eq!(site.publish(keyed("1")), Ok(first));
    site.unix_ms += DAY_MS + 1;
    assert_eq!(site.publish(keyed("1")).expect("forgotten").rev.get(), 3);
}

#[test]
fn a_keyed_publish_of_no_change_is_remembered_durably() {
    let mut site = Site::new();
    site.publish(publish(vec![put("a", "1")]))
        .expect("published");
    let keyed = Publish {
        key: Some([6; 16]),
        ..publish(vec![put("a", "1")])
    };
    let input = site.input(1, keyed.clone());
    let write = site.step(input).expect("its key is written");
    assert!(matches!(&write[..], [Entry::Keyed(_)]));
    let input = site.input(2, keyed.clone());
    site.step(input);
    assert!(
        site.replies.is_empty(),
        "neither is answered before the key is durable"
    );
    site.journal.extend(write);
    site.step(Input::Written(Written::All));
    assert_eq!(site.replies.len(), 2);

    site.replies.clear();
    let mut site = Site::open(site.journal);
    site.publish(publish(vec![put("a", "2")]))
        .expect("published");
    assert_eq!(site.publish(keyed).expect("repeated").rev.get(), 1);
    assert_eq!(site.rev_of("a"), Some(2));
}

#[test]
fn a_full_disk_refuses_what_was_not_written_and_forgets_it() {
    let mut site = Site::new();
    let input = site.input(1, publish(vec![put("a", "1")]));
    site.step(input);
    for (ticket, text) in [(2, "b"), (3, "c")] {
        let keyed = Publish {
            key: Some([ticket; 16]),
            ..publish(vec![put(text, "1")])
        };
        let input = site.input(u64::from(ticket), keyed);
        site.step(input);
    }
    // The second batch: visible 1, pending 2, pending 3; the last does not fit.
    let batch = site.step(Input::Written(Written::All)).expect("a write");
    assert_eq!(batch.len(), 3);
    let why = NotWritten::Full;
    site.step(Input::Written(Written::Some { kept: 2, why }));
    let refused: Vec<_> = site.replies.iter().filter(|(_, r)| r.is_err()).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, 3);
    assert_eq!(
        refused[0].1.as_ref().expect_err("full").code,
        Code::DiskFull
    );

    site.step(Input::Written(Written::All));
    assert_eq!((site.rev_of("b"), site.rev_of("c")), (Some(2), None));
    let keyed = Publish {
        key: Some([3; 16]),
        ..publish(vec![put("c", "1")])
    };
    let rev = site.publish(keyed).expect("there is space again").rev;
    assert_eq!(
        rev.get(),
        3,
        "no gap, no reuse of a revision that anyone saw"
    );
}

#[test]
fn a_missing_body_refuses_its_own_publish_and_asks_others_to_try_again() {
    let mut site = Site::new();
    let input = site.input(1, publish(vec![put("a", "1")]));
    site.step(input);
    let input = site.input(2, publish(vec![put("b", "1")]));
    site.step(input);
    let why = NotWritten::MissingBody(SpecHash::of(b"1"));
    site.step(Input::Written(Written::Some { kept: 0, why }));
    let codes: Vec<_> = site
        .replies
        .iter()
        .map(|(ticket, result)| (*ticket, result.as_ref().expect_err("refused").code))
        .collect();
    assert_eq!(codes, [(1, Code::MissingBody), (2, Code::Busy)]);
}

#[test]
fn when_visibility_cannot_be_written_it_is_tried_again() {
    let mut site = Site::new();
    let input = site.input(1, publish(vec![put("a", "1")]));
    site.step(input);
    site.step(Input::Written(Written::All)).expect("visible");
    let why = NotWritten::Full;
    assert!(
        site.step(Input::Written(Written::Some { kept: 0, why }))
            .is_none()
    );
    assert!(
        site.replies.is_empty(),
        "it is durable, so it is not refused"
    );
    let at = site.machine.next_wake().expect("a retry");
    let out = site.machine.handle(Input::Wake, at);
    assert!(matches!(&out[..], [Output::Write(entries)] if entries.len() == 1));
    site.step(Input::Written(Written::All));
    assert!(site.replies[0].1.is_ok());
}

#[test]
fn after_a_lost_write_nothing_is_taken_and_reads_go_on() {
    let mut site = Site::new();
    site.publish(publish(vec![put("a", "1")]))
        .expect("published");
    let input = site.input(1, publish(vec![put("a", "2")]));
    site.step(input);
    let reason = "EIO".to_owned();
    site.step(Input::Written(Written::Lost { reason }));
    assert_eq!(
        site.replies
            .pop()
            .expect("answered")
            .1
            .expect_err("lost")
            .code,
        Code::Disk
    );
    assert_eq!(
        site.publish(publish(vec![put("b", "1")]))
            .expect_err("lost")
            .code,
        Code::Disk
    );
    assert_eq!(site.rev_of("a"), Some(1));
}

#[test]
fn a_pending_revision_rolls_forward_after_a_crash() {
    let mut site = Site::new();
    let input = site.input(1, publish(vec![put("a", "1")]));
    let write = site.step(input).expect("a write");
    site.journal.extend(write);
    let site = Site::open(site.journal);
    assert_eq!(site.rev_of("a"), Some(1));
}

#[test]
fn a_checkpoint_replays_to_the_same_state() {
    let mut site = Site::new();
    for number in 0..400_u64 {
        site.unix_ms += DAY_MS / 100;
        let text = format!("n{}", number % 7);
        site.publish(publish(vec![
            put(&text, &number.to_string()),
            put("x", &number.to_string()),
        ]))
        .expect("published");
    }
    site.publish(publish(vec![delete("n3")])).expect("deleted");
    let keyed = Publish {
        key: Some([8; 16]),
        ..publish(vec![put("k", "1")])
    };
    site.publish(keyed.clone()).expect("published");
    let before = site.machine.view();
    assert!(
        before.records.oldest() > Revision::ZERO,
        "old history is gone"
    );
    site.drive(Input::Compact);
    site.drive(Input::Written(Written::All));
    let log = site.machine.ledger().log(&all());

    let mut site = Site::open(site.journal);
    let after = site.machine.view();
    assert_eq!(after.head, before.head);
    assert_eq!(after.records.root(), before.records.root());
    assert_eq!(after.records.oldest(), before.records.oldest());
    let mut rev = before.records.oldest();
    while rev <= before.records.rev() {
        for text in ["n1", "n3", "x", "k", "never"] {
            let at = |view: &View| view.records.get_at(&name(text), rev);
            assert_eq!(at(&after), at(&before), "{text} at {rev}");
        }
        rev = rev.next();
    }
    assert_eq!(site.machine.ledger().log(&all()), log);
    assert_eq!(
        site.publish(keyed).expect("the same key").rev,
        before.records.rev()
    );
}

fn all() -> GetLog {
    GetLog {
        name: None,
        before: None,
        limit: 1_000,
    }
}

#[test]
fn a_new_epoch_gets_a_head_of_its_own_even_after_a_crash() {
    let mut site = Site::new();
    site.publish(publish(vec![put("a", "1")]))
        .expect("published");
    let epoch = Epoch::new(2);
    // As `restore` leaves it: the epoch is durable, its head is not yet made.
    site.journal.push(Entry::Epoch { epoch });
    let mut site = Site::open(site.journal);
    assert_eq!(
        site.machine.view().epoch,
        Epoch::new(1),
        "leases of before may run"
    );
    site.wait(DEFAULT_LEASE);
    let view = site.machine.view();
    let head = view.head.claimed().expect("a head");
    assert_eq!((head.epoch, head.rev.get(), view.epoch), (epoch, 2, epoch));
    assert_eq!(site.rev_of("a"), Some(1));

    site.drive(Input::NewEpoch { unix_ms: 1 });
    site.wait(DEFAULT_LEASE);
    assert_eq!(site.machine.view().epoch, Epoch::new(3));
    site.drive(Input::Compact);
    site.drive(Input::Written(Written::All));
    let site = Site::open(site.journal);
    assert_eq!(site.machine.view().epoch, Epoch::new(3));
}

#[test]
fn heads_form_a_chain() {
    let mut site = Site::new();
    let mut last = site.machine.view().head.claimed().expect("a head");
    for body in ["1", "2", "3"] {
        site.publish(publish(vec![put("a", body)]))
            .expect("published");
        let head = site.machine.view().head.claimed().expect("a head");
        assert_eq!(head.prev, last.hash());
        assert_eq!(head.rev, last.rev.next());
        last = head;
    }
}

#[test]
fn a_journal_that_makes_no_history_is_refused() {
    let mut site = Site::new();
    site.publish(publish(vec![put("a", "1")]))
        .expect("published");
    site.publish(publish(vec![put("a", "2")]))
        .expect("published");
    let journal = site.journal;
    let without = |index: usize| {
        let mut journal = journal.clone();
        journal.remove(index);
        replay(&journal).expect_err("no history")
    };
    assert_eq!(without(0), ReplayError::Genesis);
    assert!(matches!(without(1), ReplayError::Visible(_)));
    let twice = [&journal[..], &journal[1..2]].concat();
    assert!(matches!(replay(&twice), Err(ReplayError::Order { .. })));
    let mut forged = journal.clone();
    if let Entry::Pending(pending) = &mut forged[1] {
        pending.changes.clear();
    }
    assert!(matches!(replay(&forged), Err(ReplayError::Root(_))));
}

#[test]
fn readers_get_one_revision_for_all_names() {
    let mut site = Site::new();
    site.publish(publish(vec![put("etl/a", "1"), put("etl/b", "1")]))
        .expect("published");
    site.publish(publish(vec![
        put("etl/a", "2"),
        delete("etl/b"),
        put("z", "1"),
    ]))
    .expect("published");
    let view = site.machine.view();
    let resolve = |at: Option<u64>| Resolve {
        at: at.map(Revision::new),
        names: ["etl/a", "etl/b"]
            .map(|text| ResolveName {
                name: name(text),
                if_hash: None,
                body: true,
            })
            .into(),
        peering: Peering::Alone,
    };
    let (now, versions) = view.resolve(&resolve(None)).expect("resolved");
    assert_eq!(now.rev.get(), 2);
    let revs: Vec<_> = versions.iter().map(|v| v.map(|v| v.rev.get())).collect();
    assert_eq!(revs, [Some(2), Some(2)]);
    assert_eq!(versions[1].map(|v| v.content), Some(Content::Deleted));
    let (then, versions) = view.resolve(&resolve(Some(1))).expect("resolved");
    assert_eq!(then.rev.get(), 1);
    assert!(versions.iter().all(|v| v.is_some_and(|v| v.rev.get() == 1)));
    assert_eq!(
        view.resolve(&resolve(Some(9))).expect_err("future").code,
        Code::Future
    );

    let list = |deleted| List {
        at: None,
        prefix: "etl/".into(),
        after: None,
        deleted,
        limit: 10,
    };
    let names = |deleted| -> Vec<_> {
        let listing = view.list(&list(deleted)).expect("listed");
        listing
            .records
            .iter()
            .map(|(name, _)| name.to_string())
            .collect()
    };
    assert_eq!(names(false), ["etl/a"]);
    assert_eq!(names(true), ["etl/a", "etl/b"]);
}

#[test]
fn a_publisher_is_answered_before_the_workers_hear_of_the_release() {
    let mut site = Site::new();
    site.drive(Input::Watch {
        sid: SessionId::new(1),
        owner: "w".into(),
        stream: 1,
    });
    let input = site.input(1, publish(vec![put("a", "1")]));
    site.step(input);
    site.step(Input::Written(Written::All));
    let now = site.now;
    let outputs = site.machine.handle(Input::Written(Written::All), now);
    let at = |wanted: fn(&Output) -> bool| outputs.iter().position(wanted).expect("it is there");
    let reveal = at(|output| matches!(output, Output::Reveal(_)));
    let reply = at(|output| matches!(output, Output::Reply { .. }));
    let release = at(|output| matches!(output, Output::Push { .. }));
    assert!(reveal < reply && reply < release, "{outputs:?}");
}

#[test]
fn a_release_that_does_not_fit_names_its_revision_alone() {
    let mut site = Site::new();
    site.drive(Input::Watch {
        sid: SessionId::new(1),
        owner: "w".into(),
        stream: 1,
    });
    let many: Vec<_> = (0..1_000)
        .map(|n| put(&format!("{n:0>100}"), "1"))
        .collect();
    for (changes, steps) in [(vec![put("a", "1")], 1), (many, 0)] {
        site.others.clear();
        let rev = site.publish(publish(changes)).expect("published").rev;
        let Some(Output::Push { push, .. }) = site.others.pop() else {
            panic!("{:?}", site.others);
        };
        let Push::Release(delta) = &*push else {
            panic!("{push:?}");
        };
        assert_eq!((delta.rev, delta.steps.len()), (rev, steps));
    }
}
