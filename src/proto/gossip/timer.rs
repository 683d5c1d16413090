//! When something is due: foca's timers, each of which is delivered, and those of the machine.

use std::collections::BTreeMap;

use foca::Timer;

use super::Member;
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::limit::MAX_GOSSIP_TIMERS;

/// What the machine itself does now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chore {
    /// Tell seeds and remembered members that we are here, until one answers.
    Announce,
    /// Take a new generation after we were declared dead.
    Renew,
    /// Compare lists with one member.
    Sync,
    /// Tell one member which heads we have.
    Heads,
    /// Write down what is to be remembered.
    Remember,
}

#[derive(Debug)]
pub(super) enum Due {
    Chore(Chore),
    Foca(Timer<Member>),
}

type Key = (Time, u64);

#[derive(Debug, Default)]
pub(super) struct Timers {
    chores: BTreeMap<Chore, Time>,
    foca: BTreeMap<Key, Timer<Member>>,
    /// Where in `foca` the end of a dead member stands: one each, however often it died.
    ends: BTreeMap<NodeId, Key>,
    seq: u64,
}

impl Timers {
    /// Sets when a chore is due, whatever was set before.
    pub(super) fn set(&mut self, chore: Chore, at: Time) {
        self.chores.insert(chore, at);
    }

    pub(super) fn clear(&mut self, chore: Chore) {
        self.chores.remove(&chore);
    }

    pub(super) fn is_set(&self, chore: Chore) -> bool {
        self.chores.contains_key(&chore)
    }

    pub(super) fn push(&mut self, at: Time, timer: Timer<Member>) {
        self.seq += 1;
        let key = (at, self.seq);
        if let Timer::RemoveDown(member) = &timer {
            // The one before was for a life that this one has replaced, or for the same.
            if let Some(before) = self.ends.insert(member.id, key) {
                self.foca.remove(&before);
            }
        }
        self.foca.insert(key, timer);
    }

    pub(super) fn next(&self) -> Option<Time> {
        if self.foca.len() > MAX_GOSSIP_TIMERS {
            return Some(Time::default());
        }
        self.first()
    }

    /// When the first of them is due, however many there are.
    pub(super) fn first(&self) -> Option<Time> {
        let foca = self.foca.first_key_value().map(|((at, _), _)| *at);
        foca.into_iter().chain(self.chores.values().copied()).min()
    }

    pub(super) fn pop(&mut self, now: Time) -> Option<Due> {
        let chore = self.chores.iter().find(|(_, at)| **at <= now);
        if let Some(chore) = chore.map(|(chore, _)| *chore) {
            self.chores.remove(&chore);
            return Some(Due::Chore(chore));
        }
        let (at, _) = *self.foca.first_key_value()?.0;
        if at > now && self.foca.len() <= MAX_GOSSIP_TIMERS {
            return None;
        }
        let (key, timer) = self.foca.pop_first()?;
        if let Timer::RemoveDown(member) = &timer
            && self.ends.get(&member.id) == Some(&key)
        {
            self.ends.remove(&member.id);
        }
        Some(Due::Foca(timer))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.foca.len()
    }
}
