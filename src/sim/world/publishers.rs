//! Publishers: what they want, how they try again, and what they were promised.

use std::time::Duration;

use super::site::Asker;
use super::{Step, World};
use crate::catalog::{Change, Content, Revision};
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::Input;
use crate::proto::wire::{Publish, PublishName, PublishedRev};
use crate::sim::history::{self, PublishAnswer, PublishId};
use crate::spec::{Spec, SpecName};

/// A publisher that hears nothing for so long takes the connection for gone.
const TIMEOUT: Duration = Duration::from_secs(12);

/// What timers may take beyond what leases do.
const SLACK: Duration = Duration::from_millis(250);

/// Writes that may come between a publish and its answer, its own two among them.
const WRITES: u32 = 10;

const MAX_TRIES: u32 = 6;

/// What came back; `None`: nothing, and nobody knows.
pub(super) type Answer = Option<Result<PublishedRev, Refusal>>;

pub(super) struct Publisher {
    by: String,
    current: Option<(Attempt, u32)>,
}

/// One way to the coordinator with a publish.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    id: PublishId,
    specs: Vec<Spec>,
    publish: Publish,
    bodiless: bool,
}

/// An attempt that the coordinator has before it.
#[derive(Debug)]
pub(super) struct Sent {
    publisher: usize,
    id: PublishId,
    pub(super) specs: Vec<Spec>,
    publish: Publish,
    /// When its answer is due.
    due: Time,
}

impl Publisher {
    pub(super) fn new(index: usize) -> Self {
        Self {
            by: format!("publisher {index}"),
            current: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none()
    }
}

impl World {
    pub(super) fn publishes(&mut self, publisher: usize) {
        if self.quiet || !self.publishers[publisher].is_idle() {
            return;
        }
        let attempt = self.new_attempt();
        self.publishers[publisher].current = Some((attempt, 0));
        self.send_attempt(publisher);
    }

    fn new_attempt(&mut self) -> Attempt {
        let width = 1 + self.random.index(self.plan.width.min(self.names.len()));
        let mut names: Vec<SpecName> = Vec::new();
        while names.len() < width {
            let name = self.random.pick(&self.names).clone();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut specs = Vec::new();
        let mut changes = Vec::new();
        for name in names {
            let spec = match self.random.percent(self.plan.deletes) {
                true => None,
                false if self.plan.rich && !self.specs.is_empty() && self.random.percent(8) => {
                    Some(self.random.pick(&self.specs).clone())
                }
                false => Some(self.new_spec(&name)),
            };
            let expect = self.expectation(&name);
            changes.push(PublishName {
                name,
                hash: spec.as_ref().map(Spec::hash),
                len: spec.as_ref().map_or(0, Spec::len),
                expect,
            });
            specs.extend(spec);
        }
        let key = self.random.percent(70).then(|| {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&self.random.next().to_be_bytes());
            key
        });
        Attempt {
            id: PublishId(self.id()),
            specs,
            publish: Publish {
                key,
                note: String::new(),
                changes,
            },
            bodiless: self.random.percent(self.plan.bodiless),
        }
    }

    /// Some publishers say what they think that a name is.
    fn expectation(&mut self, name: &SpecName) -> Option<Revision> {
        if !self.random.percent(25) {
            return None;
        }
        let view = &self.site.running.as_ref()?.view;
        let version = view.records.get(name)?;
        Some(match version.content {
            Content::Present { .. } => version.rev,
            Content::Deleted => Revision::ZERO,
        })
    }

    fn send_attempt(&mut self, publisher: usize) {
        let Some((attempt, _)) = &self.publishers[publisher].current else {
            return;
        };
        let attempt = attempt.clone();
        let content = |change: &PublishName| match change.hash {
            Some(hash) => Content::Present {
                hash,
                len: change.len,
            },
            None => Content::Deleted,
        };
        let changes = attempt.publish.changes.iter().map(|change| Change {
            name: change.name.clone(),
            content: content(change),
        });
        let publish = history::Publish {
            id: attempt.id,
            invoked: self.now,
            by: self.publishers[publisher].by.clone(),
            key: attempt.publish.key,
            changes: changes.collect(),
        };
        self.oracle
            .event(history::Event::PublishInvoked(publish), "publisher");
        let id = attempt.id;
        let pause = self.travel();
        self.later(pause, Step::Publishing(publisher, attempt));
        let result = None;
        let step = Step::Published {
            publisher,
            id,
            result,
        };
        self.later(TIMEOUT, step);
    }

    /// The coordinator gets the bodies, and then the publish.
    pub(super) fn publish_arrives(&mut self, publisher: usize, attempt: Attempt) {
        let sent = Sent {
            publisher,
            id: attempt.id,
            specs: attempt.specs,
            publish: attempt.publish,
            due: self.site.patience(self.now) + SLACK + self.plan.fsync.1 * WRITES,
        };
        if !self.site.serves() {
            return self.publish_lost(&sent);
        }
        if !attempt.bodiless
            && let Err(refusal) = self.stage(&sent)
        {
            return self.answer_publisher(publisher, sent.id, Some(Err(refusal)));
        }
        let by = self.publishers[publisher].by.clone();
        let publish = sent.publish.clone();
        let ticket = self.ticket(Asker::Publisher(sent));
        let unix_ms = self.site.clock.unix_ms(self.now);
        self.drive(Input::Publish {
            ticket,
            by,
            publish,
            unix_ms,
        });
    }

    pub(super) fn publish_lost(&mut self, sent: &Sent) {
        self.answer_publisher(sent.publisher, sent.id, None);
    }

    fn answer_publisher(&mut self, publisher: usize, id: PublishId, result: Answer) {
        let pause = self.travel();
        let step = Step::Published {
            publisher,
            id,
            result,
        };
        self.later(pause, step);
    }

    /// The machine answers a publisher.
    pub(super) fn publish_answered(&mut self, sent: Sent, result: Result<PublishedRev, Refusal>) {
        self.in_time(&sent);
        if let Ok(published) = &result {
            self.as_expected(&sent, published);
        }
        self.answer_publisher(sent.publisher, sent.id, Some(result));
    }

    /// L1.
    fn in_time(&mut self, sent: &Sent) {
        if self.now > sent.due && self.now > self.site.excused_until {
            let why = format!(
                "L1: publish {} was due at {} us",
                sent.id,
                sent.due.as_micros()
            );
            self.oracle.fail(self.now, why, "w".into());
        }
    }

    /// L1 for those that are still waiting.
    pub(super) fn nobody_waits_too_long(&mut self) {
        let Some(running) = &self.site.running else {
            return;
        };
        if running.machine.lost().is_some() || self.now <= self.site.excused_until {
            return;
        }
        let late = running.asked.values().find_map(|asker| match asker {
            Asker::Publisher(sent) if self.now > sent.due => Some((sent.id, sent.due)),
            _ => None,
        });
        if let Some((id, due)) = late {
            let why = format!("L1: publish {id} was due at {} us", due.as_micros());
            self.oracle.fail(self.now, why, "w".into());
        }
    }

    /// What a publisher expected a name to be is what it was.
    fn as_expected(&mut self, sent: &Sent, published: &PublishedRev) {
        let Some(running) = &self.site.running else {
            return;
        };
        if published.changed == 0 {
            return;
        }
        let records = running.machine.ledger().visible();
        let mut wrong = None;
        for change in &sent.publish.changes {
            let Some(expect) = change.expect else {
                continue;
            };
            let versions = records.versions(&change.name);
            let Some(at) = versions.iter().position(|v| v.rev == published.rev) else {
                continue;
            };
            let before = at.checked_sub(1).map(|before| versions[before]);
            let absent = before.is_none_or(|before| before.content == Content::Deleted);
            let rev = before.map_or(Revision::ZERO, |before| before.rev);
            let pruned = at == 0 && records.oldest() > Revision::ZERO;
            if rev != expect && !(expect == Revision::ZERO && absent) && !pruned {
                wrong = Some(format!(
                    "publish {} expected `{}` at {expect}, and it was at {rev}",
                    sent.id, change.name
                ));
            }
        }
        if let Some(why) = wrong {
            self.oracle.fail(self.now, why, "publisher".into());
        }
    }

    /// A publisher hears of its attempt, or gives it up.
    pub(super) fn published(&mut self, publisher: usize, id: PublishId, result: Answer) {
        let Some((attempt, tries)) = &mut self.publishers[publisher].current else {
            return;
        };
        if attempt.id != id {
            return;
        }
        let unknown = matches!(&result, Some(Err(refusal)) if refusal.code == Code::Disk);
        let answer = match &result {
            Some(Ok(published)) => Some(PublishAnswer::from(published)),
            Some(Err(_)) if !unknown => Some(PublishAnswer::Refused),
            _ => None,
        };
        if let Some(answer) = answer {
            let at = self.now;
            let event = history::Event::PublishAnswered { id, at, answer };
            self.oracle.event(event, "publisher");
        } else if attempt.publish.key.is_some() && *tries < MAX_TRIES {
            *tries += 1;
            self.ids += 1;
            attempt.id = PublishId(self.ids);
            return self.send_attempt(publisher);
        }
        self.publishers[publisher].current = None;
        let pause = self.random.span(self.plan.publish);
        self.later(pause, Step::Publishes(publisher));
    }
}
