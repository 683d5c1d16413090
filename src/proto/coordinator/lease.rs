//! Leases: who may answer without asking, and what a publish waits for.
//!
//! A publish that is durable takes a *snapshot* of the holders and of when their leases end.
//! It may become visible when each of them has said that it stopped answering for what changes,
//! or when that time has come. Later renewals change nothing about it: whoever renews meanwhile
//! is told of the change in the grant itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;

use crate::catalog::Revision;
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{
    FIRST_BAR, MAX_BAR, MAX_NAMED_HOLDERS, MAX_SESSIONS, MAX_SESSIONS_PER_NODE, MAX_STRIKES,
    STRIKE_WINDOW,
};
use crate::proto::mutant::mutant;
use crate::proto::wire::{SessionId, Waited};

/// Everyone who watches, and what waits for them.
#[derive(Debug, Clone)]
pub(super) struct Leases {
    pub(super) lease: Duration,
    /// Nothing becomes visible before: leases of before the start may still run.
    pub(super) grace: Time,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    /// By pending revision.
    pub(super) waits: BTreeMap<Revision, Wait>,
}

#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The certificate that first used this id.
    pub(super) owner: String,
    pub(super) expires: Time,
    /// Everything up to here is marked there.
    pub(super) acked: Revision,
    pub(super) have: Revision,
    /// The newest revision that a grant named to it: it answers with nothing older.
    pub(super) floor: Revision,
    pub(super) heard: Time,
    /// The stream that carries what is pushed, by the driver's number.
    pub(super) watch: Option<u64>,
    pub(super) strikes: VecDeque<Time>,
    /// The newest strike, also after a bar has made up for it.
    pub(super) struck: Option<Time>,
    pub(super) barred_until: Time,
    /// How long the next bar lasts.
    pub(super) bar: Duration,
}

#[derive(Debug, Clone)]
pub(super) struct Wait {
    pub(super) since: Time,
    pub(super) holders: u32,
    /// Who has not acknowledged, and when that no longer matters.
    pub(super) left: BTreeMap<SessionId, Time>,
    /// The same by time: what ends first is looked for at every input.
    ends: BTreeSet<(Time, SessionId)>,
    pub(super) expired: Vec<String>,
}

/// What `status` says of one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionInfo {
    /// Its short id.
    pub session: String,
    /// The worker's URI.
    pub uri: String,
    /// How long its lease still runs, milliseconds; 0: it has none.
    pub lease_ms: u64,
    /// The revision of its replica, as it last said.
    pub rev: Revision,
    /// The newest revision that it was told of: it answers with nothing older.
    pub floor: Revision,
    /// Names that are about to change, for which it has stopped answering.
    pub marks: usize,
    /// It has stopped answering for everything that changes up to this revision.
    pub acked: Revision,
    /// Since it was last heard, milliseconds.
    pub heard_ms: u64,
    /// What is about to change reaches it at once.
    pub watching: bool,
    /// It gets no lease for this long, because publishes had to wait for it, milliseconds.
    pub barred_ms: u64,
}

/// What a pending publish waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitInfo {
    /// The pending revision.
    pub rev: Revision,
    /// Milliseconds since it was durable.
    pub waited_ms: u64,
    /// At most this much longer, milliseconds.
    pub left_ms: u64,
    /// Workers that have not acknowledged.
    pub waiting_for: Vec<String>,
    /// It waits for leases of before the coordinator's start.
    pub grace: bool,
}

impl Leases {
    pub(super) fn new(lease: Duration, grace: Time) -> Self {
        Self {
            lease,
            grace,
            sessions: BTreeMap::new(),
            waits: BTreeMap::new(),
        }
    }

    pub(super) fn grace(&self) -> Time {
        self.grace
    }

    pub(super) fn extend_grace(&mut self, until: Time) {
        self.grace = self.grace.max(until);
    }

    /// The session of `sid`, made if there is none. An id belongs to the certificate that first
    /// used it.
    fn session(&mut self, sid: SessionId, owner: &str, now: Time) -> Result<&mut Session, Refusal> {
        if !self.sessions.contains_key(&sid) {
            self.forget_ended(now);
            let of_owner = |session: &&Session| session.owner == owner;
            if self.sessions.len() >= MAX_SESSIONS
                || self.sessions.values().filter(of_owner).count() >= MAX_SESSIONS_PER_NODE
            {
                return Err(Refusal::new(Code::Busy, "too many workers hold sessions"));
            }
            self.sessions.insert(sid, Session::new(owner, now));
        }
        match self.sessions.get_mut(&sid) {
            Some(session) if session.owner == owner => {
                session.heard = now;
                Ok(session)
            }
            _ => Err(Refusal::new(
                Code::NotAllowed,
                "this session belongs to another node",
            )),
        }
    }

    fn forget_ended(&mut self, now: Time) {
        self.sessions.retain(|_, session| {
            session.watch.is_some()
                || session.expires > now
                || session.barred_until > now
                || now.since(session.heard) < STRIKE_WINDOW && !session.strikes.is_empty()
        });
    }

    pub(super) fn watch(
        &mut self,
        sid: SessionId,
        owner: &str,
        stream: u64,
        now: Time,
    ) -> Result<(), Refusal> {
        self.session(sid, owner, now)?.watch = Some(stream);
        Ok(())
    }

    /// A stream has ended; a newer one of the same session goes on.
    pub(super) fn unwatch(&mut self, sid: SessionId, stream: u64) {
        if let Some(session) = self.sessions.get_mut(&sid)
            && session.watch == Some(stream)
        {
            session.watch = None;
        }
    }

    /// Whether what is pushed reaches `sid`.
    pub(super) fn is_watching(&self, sid: SessionId) -> bool {
        self.sessions
            .get(&sid)
            .is_some_and(|session| session.watch.is_some())
    }

    /// Streams to push to.
    pub(super) fn watchers(&self) -> Vec<u64> {
        self.sessions
            .values()
            .filter_map(|session| session.watch)
            .collect()
    }

    /// The lease that `sid` gets now, which has `have` and is told of `visible`; zero without one.
    pub(super) fn grant(
        &mut self,
        sid: SessionId,
        owner: &str,
        (have, visible): (Revision, Revision),
        now: Time,
        may_lease: bool,
    ) -> Result<Duration, Refusal> {
        let lease = self.lease;
        let session = self.session(sid, owner, now)?;
        session.have = have;
        session.floor = session.floor.max(visible);
        // Nobody could tell it of a change: every publish would wait for its lease to run out.
        if !may_lease || session.watch.is_none() || session.barred_until > now {
            return Ok(Duration::ZERO);
        }
        session.expires = session.expires.max(now + lease);
        Ok(lease)
    }

    /// `sid` answers for nothing any more that changes up to `rev`, which is durable.
    pub(super) fn ack(&mut self, sid: SessionId, owner: &str, rev: Revision, now: Time) {
        let Ok(session) = self.session(sid, owner, now) else {
            return;
        };
        session.acked = session.acked.max(rev);
        for (_, wait) in self.waits.range_mut(..=rev) {
            wait.let_go(sid);
        }
    }

    /// `sid` has given its lease back.
    pub(super) fn leave(&mut self, sid: SessionId, owner: &str) {
        if self
            .sessions
            .get(&sid)
            .is_some_and(|session| session.owner == owner)
        {
            self.sessions.remove(&sid);
            for wait in self.waits.values_mut() {
                wait.let_go(sid);
            }
        }
    }

    /// A pending revision is durable: it waits for all who hold a lease now.
    pub(super) fn begin_wait(&mut self, rev: Revision, now: Time) {
        let holders = self.sessions.iter();
        let left: BTreeMap<_, _> = holders
            .filter(|(_, session)| session.expires > now)
            .map(|(sid, session)| (*sid, session.expires))
            .collect();
        let mut wait = Wait {
            since: now,
            holders: u32::try_from(left.len()).unwrap_or(u32::MAX),
            left: if mutant!(M02) { BTreeMap::new() } else { left },
            ends: BTreeSet::new(),
            expired: Vec::new(),
        };
        wait.sort_ends();
        self.waits.insert(rev, wait);
    }

    /// Lets go of those whose lease has run out.
    pub(super) fn expire(&mut self, now: Time) {
        for wait in self.waits.values_mut() {
            if mutant!(M05) {
                for (sid, at) in &mut wait.left {
                    *at = self
                        .sessions
                        .get(sid)
                        .map_or(*at, |session| session.expires);
                }
                wait.sort_ends();
            }
            while let Some(&(at, sid)) = wait.ends.first()
                && at <= now
            {
                wait.let_go(sid);
                if let Some(session) = self.sessions.get_mut(&sid) {
                    if wait.expired.len() < MAX_NAMED_HOLDERS {
                        wait.expired.push(session.owner.clone());
                    }
                    session.strike(self.lease, now);
                }
            }
        }
    }

    /// The newest revision up to which nothing is waited for any more.
    pub(super) fn releasable(&self, now: Time) -> Option<Revision> {
        if now < self.grace {
            return None;
        }
        let free = self
            .waits
            .iter()
            .take_while(|(_, wait)| wait.left.is_empty());
        free.map(|(rev, _)| *rev).last()
    }

    /// `rev` is visible; what its publisher is told of the wait.
    pub(super) fn end_wait(&mut self, rev: Revision, now: Time) -> Waited {
        let Some(wait) = self.waits.remove(&rev) else {
            return Waited::default();
        };
        Waited {
            ms: millis(now.since(wait.since)),
            holders: wait.holders,
            expired: wait.expired,
        }
    }

    /// When something that is waited for runs out.
    pub(super) fn next_wake(&self, now: Time) -> Option<Time> {
        let grace = (!self.waits.is_empty() && self.grace > now).then_some(self.grace);
        let leases = self.waits.values().filter_map(|wait| wait.ends.first());
        leases.map(|(at, _)| *at).chain(grace).min()
    }

    /// What is known of each session; `marks` counts the names that change up to a revision.
    pub(super) fn sessions(
        &self,
        now: Time,
        marks: impl Fn(Revision) -> usize,
    ) -> Vec<SessionInfo> {
        let infos = self.sessions.iter().map(|(sid, session)| SessionInfo {
            session: sid.to_string(),
            uri: session.owner.clone(),
            lease_ms: millis(session.expires.since(now)),
            rev: session.have,
            floor: session.floor,
            marks: marks(session.acked),
            acked: session.acked,
            heard_ms: millis(now.since(session.heard)),
            watching: session.watch.is_some(),
            barred_ms: millis(session.barred_until.since(now)),
        });
        infos.collect()
    }

    pub(super) fn waits(&self, now: Time) -> Vec<WaitInfo> {
        let owner = |sid: &SessionId| self.sessions.get(sid).map(|session| session.owner.clone());
        let infos = self.waits.iter().map(|(rev, wait)| {
            let longest = wait.left.values().copied().max().unwrap_or_default();
            WaitInfo {
                rev: *rev,
                waited_ms: millis(now.since(wait.since)),
                left_ms: millis(longest.max(self.grace).since(now)),
                waiting_for: wait
                    .left
                    .keys()
                    .filter_map(owner)
                    .take(MAX_NAMED_HOLDERS)
                    .collect(),
                grace: self.grace > now,
            }
        });
        infos.collect()
    }
}

impl Wait {
    /// Waits for `sid` no more.
    fn let_go(&mut self, sid: SessionId) {
        if let Some(at) = self.left.remove(&sid) {
            self.ends.remove(&(at, sid));
        }
    }

    fn sort_ends(&mut self) {
        self.ends = self.left.iter().map(|(sid, at)| (*at, *sid)).collect();
    }
}

impl Session {
    fn new(owner: &str, now: Time) -> Self {
        Self {
            owner: owner.to_owned(),
            expires: Time::default(),
            acked: Revision::ZERO,
            have: Revision::ZERO,
            floor: Revision::ZERO,
            heard: now,
            watch: None,
            strikes: VecDeque::new(),
            struck: None,
            barred_until: Time::default(),
            bar: FIRST_BAR,
        }
    }

    /// A publish had to wait for this one's lease to run out. Publishes that waited for the same
    /// cut count once, also when the first of them has led to a bar.
    fn strike(&mut self, lease: Duration, now: Time) {
        if self.struck.is_some_and(|last| now.since(last) < lease) {
            return;
        }
        self.struck = Some(now);
        while self
            .strikes
            .front()
            .is_some_and(|at| now.since(*at) >= STRIKE_WINDOW)
        {
            self.strikes.pop_front();
        }
        // Nothing has counted against it for a whole window: the bars of before are forgiven.
        if self.strikes.is_empty() && now.since(self.barred_until) >= STRIKE_WINDOW {
            self.bar = FIRST_BAR;
        }
        self.strikes.push_back(now);
        if self.strikes.len() >= MAX_STRIKES {
            self.strikes.clear();
            self.barred_until = now + self.bar;
            self.bar = (self.bar * 2).min(MAX_BAR);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    //! Goal: whoever makes publishes wait has no lease for as long as the protocol says, and no
    //! longer. Method: one session that acknowledges nothing.

    use super::*;

    const LEASE: Duration = Duration::from_secs(6);
    const OWNER: &str = "w1";

    struct Silent {
        leases: Leases,
        now: Time,
        rev: Revision,
    }

    impl Silent {
        fn new() -> Self {
            let now = Time::from_micros(1);
            let mut leases = Leases::new(LEASE, now);
            let watched = leases.watch(sid(), OWNER, 1, now);
            watched.expect("a session");
            Self {
                leases,
                now,
                rev: Revision::ZERO,
            }
        }

        /// Whether it gets a lease.
        fn renew(&mut self) -> bool {
            let known = (Revision::ZERO, Revision::ZERO);
            let granted = self.leases.grant(sid(), OWNER, known, self.now, true);
            granted.expect("a grant") > Duration::ZERO
        }

        fn publish(&mut self) {
            self.rev = self.rev.next();
            self.leases.begin_wait(self.rev, self.now);
        }

        fn pass(&mut self, time: Duration) {
            self.now = self.now + time;
            self.leases.expire(self.now);
        }

        /// A publish waits for its lease to run out.
        fn strike(&mut self) {
            assert!(self.renew());
            self.publish();
            self.pass(LEASE);
        }

        /// How long it gets no lease once three publishes have waited.
        fn barred(&mut self) -> Duration {
            (0..MAX_STRIKES).for_each(|_| self.strike());
            assert!(!self.renew());
            self.session().barred_until.since(self.now)
        }

        fn session(&self) -> &Session {
            &self.leases.sessions[&sid()]
        }
    }

    fn sid() -> SessionId {
        SessionId::new(1)
    }

    #[test]
    fn a_bar_ends_when_its_time_is_over_and_each_one_is_twice_as_long_up_to_a_bound() {
        let mut holder = Silent::new();
        for expected in [60, 120, 240, 480, 600, 600].map(Duration::from_secs) {
            assert_eq!(holder.barred(), expected);
            holder.pass(expected - Duration::from_millis(1));
            assert!(!holder.renew());
            holder.pass(Duration::from_millis(1));
            assert!(holder.renew());
        }
    }

    #[test]
    fn bars_are_forgiven_after_a_whole_window_in_which_no_publish_waited() {
        let mut holder = Silent::new();
        assert_eq!(holder.barred(), FIRST_BAR);
        holder.pass(FIRST_BAR);
        assert_eq!(holder.barred(), FIRST_BAR * 2);
        // The next strike comes a second too early.
        holder.pass(FIRST_BAR * 2 + STRIKE_WINDOW - LEASE - Duration::from_secs(1));
        assert_eq!(holder.barred(), FIRST_BAR * 4);
        holder.pass(FIRST_BAR * 4 + STRIKE_WINDOW - LEASE);
        assert_eq!(holder.barred(), FIRST_BAR);
    }

    #[test]
    fn what_waits_for_one_cut_counts_once_also_when_that_has_led_to_a_bar() {
        let mut holder = Silent::new();
        (1..MAX_STRIKES).for_each(|_| holder.strike());
        // What it sends still comes, so that the second publish waits for a later lease.
        for _ in 0..2 {
            assert!(holder.renew());
            holder.publish();
            holder.pass(LEASE / 2);
        }
        assert!(!holder.renew(), "the first has waited");
        assert!(holder.session().strikes.is_empty());
        holder.pass(LEASE / 2);
        assert!(
            holder
                .leases
                .waits
                .values()
                .all(|wait| wait.left.is_empty())
        );
        assert!(holder.session().strikes.is_empty(), "the same cut");
    }
}
