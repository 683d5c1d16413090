//! Bytes: one fetch per hash, from whoever gives them first and rightly.

use std::time::Duration;

use bytes::Bytes;

use crate::answer::{GetError, Hop, HopFailure};
use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::code::Code;
use crate::proto::limit::{
    HELD_PATIENCE, HOLDERS_NAMED, MAX_POINTED_PATIENCE, POINTED_HEDGE, POINTED_PATIENCE,
};
use crate::proto::mutant::mutant;
use crate::proto::wire::Peering;
use crate::proto::worker::names::damaged;
use crate::proto::worker::sources::Wish;
use crate::proto::worker::{
    Basis, Call, CallId, Event, LoadFor, Local, Neighbour, Output, Source, Ticket, Timer, Waiter,
    Worker,
};
use crate::spec::{Mismatch, Spec, SpecHash};

/// The bytes of one hash on their way.
#[derive(Debug, Clone)]
pub(super) struct Fetch {
    /// As the first record says; whoever has another record is told so at the end.
    len: Option<u64>,
    wanted: Vec<Wanted>,
    active: Vec<(CallId, Source)>,
    tried: Vec<Source>,
    /// Whom the coordinator named instead of giving the bytes.
    hinted: Vec<NodeId>,
    /// Until when those have it for themselves.
    theirs_until: Option<Time>,
    /// How long the coordinator took to name them.
    named_after: Duration,
    /// Sources that were given a second try over a new connection.
    retried: Vec<Source>,
    hops: Vec<HopFailure>,
    hedge_at: Option<Time>,
}

/// Reads that share one truth and wait for its bytes.
#[derive(Debug, Clone)]
struct Wanted {
    waiters: Vec<Waiter>,
    basis: Basis,
    len: Option<u64>,
    hops: Vec<HopFailure>,
    /// Sources had failed before these joined: they may be back, so that their failures are no
    /// answer to these.
    late: bool,
}

impl Fetch {
    fn new(len: Option<u64>) -> Self {
        Self {
            len,
            wanted: Vec::new(),
            active: Vec::new(),
            tried: Vec::new(),
            hinted: Vec::new(),
            theirs_until: None,
            named_after: Duration::ZERO,
            retried: Vec::new(),
            hops: Vec::new(),
            hedge_at: None,
        }
    }

    /// Whom the coordinator named for it.
    pub(super) fn hinted(&self) -> impl Iterator<Item = NodeId> {
        self.hinted.iter().copied()
    }

    fn is_hinted(&self, source: Source) -> bool {
        matches!(source, Source::Peer(id) if self.hinted.contains(&id))
    }

    /// Whether this is the first question for these bytes, which may be answered with the names of
    /// others.
    fn is_fresh(&self) -> bool {
        let asked = [self.tried.len(), self.active.len(), self.hops.len()];
        self.theirs_until.is_none() && asked == [0; 3]
    }

    /// Until when the coordinator is not asked, while others are that it has named.
    fn patience(&self, next: Source, now: Time) -> Option<Time> {
        let until = self.theirs_until?;
        let waits = !next.is_peer() && !self.active.is_empty() && now < until;
        waits.then_some(until)
    }

    pub(super) fn forget(&mut self, ticket: Ticket) {
        for wanted in &mut self.wanted {
            wanted.waiters.retain(|waiter| waiter.ticket != ticket);
        }
        self.wanted.retain(|wanted| !wanted.waiters.is_empty());
    }
}

impl Worker {
    /// Looks on disk, then asks.
    pub(super) fn want_bytes(
        &mut self,
        hash: SpecHash,
        len: Option<u64>,
        basis: Basis,
        waiters: Vec<Waiter>,
        hops: Vec<HopFailure>,
    ) {
        let mut wanted = Wanted {
            waiters,
            basis,
            len,
            hops,
            late: false,
        };
        if let Some(fetch) = self.fetches.get_mut(&hash) {
            wanted.late = !fetch.hops.is_empty();
            fetch.wanted.push(wanted);
            return;
        }
        let mut fetch = Fetch::new(len);
        fetch.wanted.push(wanted);
        self.fetches.insert(hash, fetch);
        self.load(hash, LoadFor::Fetch);
    }

    /// The bytes are about to follow in the answer of `inline`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a truth and where its bytes come from"
    )]
    pub(super) fn want_inline(
        &mut self,
        hash: SpecHash,
        len: u64,
        basis: Basis,
        waiters: Vec<Waiter>,
        hops: Vec<HopFailure>,
        inline: (CallId, Source),
        now: Time,
    ) {
        let len = Some(len);
        let fetch = self.fetches.entry(hash).or_insert_with(|| Fetch::new(len));
        fetch.wanted.push(Wanted {
            waiters,
            basis,
            len,
            hops,
            late: !fetch.hops.is_empty(),
        });
        fetch.active.push(inline);
        self.arm_hedge(hash, inline.1, now);
    }

    pub(super) fn fetch_loaded(&mut self, hash: SpecHash, local: Local, now: Time) {
        let Some(fetch) = self.fetches.get_mut(&hash) else {
            return;
        };
        match local {
            Local::Found(spec) => return self.complete(hash, &spec, Hop::Disk, now),
            Local::Missing => {}
            Local::Damaged => fetch.hops.push(damaged()),
            Local::Failed(reason) => {
                // A broken disk is reported as itself; asking elsewhere would hide it.
                return self.fail_fetch(hash, |_| GetError::Disk {
                    reason: reason.clone(),
                });
            }
        }
        if fetch.active.is_empty() {
            self.ask_next(hash, now);
        }
    }

    /// Asks the next source; without one the round is over once nobody is being asked any more.
    fn ask_next(&mut self, hash: SpecHash, now: Time) {
        let Some(fetch) = self.fetches.get(&hash) else {
            return;
        };
        // Who breaks off in the middle of an answer may be asked once more for the bytes alone.
        let asked: Vec<_> = fetch
            .tried
            .iter()
            .copied()
            .chain(fetch.active.iter().map(|(_, source)| *source))
            .collect();
        let wish = Wish {
            hash,
            hinted: &fetch.hinted,
            tried: &asked,
        };
        let Some(source) = self.sources.next_source(&wish, now) else {
            if fetch.active.is_empty() {
                self.round_over(hash, now);
            }
            return;
        };
        if let Some(until) = fetch.patience(source, now) {
            return self.arm_hedge_at(hash, until);
        }
        let force = match source {
            Source::Coordinator(_) => self.peering == Peering::Alone || !fetch.is_fresh(),
            Source::Peer(_) => !fetch.is_hinted(source),
        };
        let len = fetch.len;
        let left = |wanted: &Wanted| self.time_left(&wanted.waiters, now);
        let within = fetch.wanted.iter().map(left).max().unwrap_or_default();
        let call = self.new_call(Call::Fetch {
            hash,
            source,
            since: now,
        });
        if let Some(fetch) = self.fetches.get_mut(&hash) {
            fetch.active.push((call, source));
            fetch.tried.push(source);
        }
        self.out.push(Output::Fetch {
            call,
            source,
            hash,
            len,
            addr: self.sources.passing_addr(source),
            force,
            within,
        });
        self.arm_hedge(hash, source, now);
    }

    /// Everybody was asked in vain. Whoever joined late has a round of its own, which is its last.
    fn round_over(&mut self, hash: SpecHash, now: Time) {
        let Some(fetch) = self.fetches.get_mut(&hash) else {
            return;
        };
        let mut late: Vec<_> = fetch.wanted.extract_if(.., |wanted| wanted.late).collect();
        self.fail_fetch(hash, |hops| GetError::NoBytes { hash, hops });
        let Some(first) = late.first() else {
            return;
        };
        let mut fetch = Fetch::new(first.len);
        late.iter_mut().for_each(|wanted| wanted.late = false);
        fetch.wanted = late;
        self.fetches.insert(hash, fetch);
        self.ask_next(hash, now);
    }

    fn arm_hedge(&mut self, hash: SpecHash, source: Source, now: Time) {
        let fetch = self.fetches.get(&hash);
        let hinted = fetch.filter(|fetch| fetch.is_hinted(source));
        let usual = self.sources.hedge_after(source);
        // It may hold the question while the bytes are on their way to it, and where the
        // coordinator is slow everybody waits.
        let after = match hinted {
            Some(fetch) => {
                let slow = fetch.named_after.min(POINTED_PATIENCE);
                usual.max(POINTED_HEDGE).max(slow)
            }
            None => usual,
        };
        self.arm_hedge_at(hash, now + after);
    }

    fn arm_hedge_at(&mut self, hash: SpecHash, at: Time) {
        if let Some(fetch) = self.fetches.get_mut(&hash) {
            if let Some(before) = fetch.hedge_at.replace(at) {
                self.timers.remove(&(before, Timer::Hedge(hash)));
            }
            self.timers.insert((at, Timer::Hedge(hash)));
        }
    }

    /// The source asked last is slower than usual: another one is asked as well.
    pub(super) fn hedge(&mut self, hash: SpecHash, now: Time) {
        if let Some(fetch) = self.fetches.get_mut(&hash) {
            fetch.hedge_at = None;
            if !fetch.wanted.is_empty() {
                self.ask_next(hash, now);
            }
        }
    }

    /// The coordinator, asked at `since`, named others instead of giving the bytes: they are asked
    /// first. Where none of them can be asked it is asked again, and gives.
    pub(super) fn point(&mut self, hash: SpecHash, ask: &[Neighbour], since: Time, now: Time) {
        if !self.fetches.contains_key(&hash) {
            return;
        }
        if !self.sources.has_room() {
            self.sources.make_room(&self.peers_in_use());
        }
        for holder in ask.iter().take(HOLDERS_NAMED) {
            let met = self.sources.meet(holder);
            if let (Some(id), Some(fetch)) = (met, self.fetches.get_mut(&hash))
                && !fetch.hinted.contains(&id)
            {
                fetch.hinted.push(id);
            }
        }
        if let Some(fetch) = self.fetches.get_mut(&hash) {
            // To ask it again takes as long as this has, so it is not worth while before that.
            let took = now.since(since);
            let patience = (took * 2).clamp(POINTED_PATIENCE, MAX_POINTED_PATIENCE);
            fetch.theirs_until = Some(now + patience);
            fetch.named_after = took;
        }
    }

    /// Takes the names of others for an answer, once per fetch.
    fn fetch_pointed(
        &mut self,
        hash: SpecHash,
        id: CallId,
        ask: &[Neighbour],
        since: Time,
        now: Time,
    ) {
        self.point(hash, ask, since, now);
        let Some(fetch) = self.fetches.get_mut(&hash) else {
            return;
        };
        let pointed = fetch.active.iter().position(|(call, _)| *call == id);
        let Some((_, source)) = pointed.map(|index| fetch.active.swap_remove(index)) else {
            return;
        };
        fetch.tried.retain(|tried| *tried != source);
        self.ask_next(hash, now);
    }

    /// It is there, and the bytes are on their way to it: nobody else is asked so soon.
    fn fetch_held(&mut self, id: CallId) {
        let Some(&Call::Fetch {
            hash,
            source,
            since,
        }) = self.calls.get(&id)
        else {
            return;
        };
        let fetch = self.fetches.get_mut(&hash);
        if let Some(fetch) = fetch.filter(|fetch| fetch.is_hinted(source)) {
            fetch.theirs_until = fetch.theirs_until.max(Some(since + HELD_PATIENCE));
            if let Some(next) = fetch.hedge_at {
                self.arm_hedge_at(hash, next.max(since + POINTED_PATIENCE));
            }
        }
    }

    pub(super) fn fetch_event(&mut self, id: CallId, event: Event, now: Time) {
        if let Event::Held = event {
            return self.fetch_held(id);
        }
        let Some(Call::Fetch {
            hash,
            source,
            since,
        }) = self.calls.remove(&id)
        else {
            return;
        };
        let (reason, unreachable) = match event {
            Event::Body(bytes) => return self.fetch_body(hash, id, source, since, bytes, now),
            Event::Pointed(ask) if !source.is_peer() && !self.is_pointed(hash) => {
                return self.fetch_pointed(hash, id, &ask, since, now);
            }
            Event::Refused(refusal) if refusal.code == Code::NotFound => {
                if mutant!(X15) && source.is_peer() {
                    return self.absent_by_peer(hash, now);
                }
                return self.source_failed(hash, id, "does not have it", now);
            }
            Event::Refused(refusal) if refusal.code == Code::Busy && source.is_peer() => {
                self.sources.busy(source, now);
                return self.source_failed(hash, id, &refusal.message, now);
            }
            Event::Refused(refusal) => (refusal.message, false),
            Event::Failed {
                reason,
                unreachable,
            } => (reason, unreachable),
            Event::Lost { reason } => {
                if let Some(fetch) = self.fetches.get_mut(&hash)
                    && !fetch.retried.contains(&source)
                {
                    fetch.retried.push(source);
                    fetch.tried.retain(|tried| *tried != source);
                }
                (reason, false)
            }
            Event::End => ("the answer ended early".into(), false),
            _ => {
                self.out.push(Output::Cancel(id));
                ("the answer is out of order".into(), false)
            }
        };
        self.sources.failed(source, unreachable, now);
        self.source_failed(hash, id, &reason, now);
    }

    fn is_pointed(&self, hash: SpecHash) -> bool {
        let fetch = self.fetches.get(&hash);
        fetch.is_some_and(|fetch| fetch.theirs_until.is_some())
    }

    /// Verifies what a source sent; only right bytes end the fetch.
    pub(super) fn fetch_body(
        &mut self,
        hash: SpecHash,
        id: CallId,
        source: Source,
        since: Time,
        bytes: Bytes,
        now: Time,
    ) {
        let Some(fetch) = self.fetches.get(&hash) else {
            return;
        };
        let hedged = fetch.active.len() > 1 && mutant!(X25);
        let verified = match hedged {
            true => Ok(Spec::new(bytes)),
            false => Spec::verify(hash, fetch.len, bytes),
        };
        match verified {
            Ok(spec) => {
                if source.is_peer() {
                    // Who was named may have waited for the bytes itself, which says nothing of it.
                    let took = now.since(since);
                    let took = (!fetch.is_hinted(source)).then_some(took);
                    self.sources.answered(source, took);
                    self.sources.gave(hash, source);
                }
                let hop = self.sources.hop(source);
                self.complete(hash, &spec, hop, now);
            }
            Err(mismatch) => {
                self.sources.lied(source, now);
                let hop = self.sources.hop(source);
                let what = match mismatch {
                    Mismatch::Length { .. } => format!("sent bytes of a wrong length: {mismatch}"),
                    Mismatch::Hash { .. } => format!("sent wrong bytes: {mismatch}"),
                };
                let reason = what.clone();
                self.out.push(Output::Misbehaved { hop, what });
                self.source_failed(hash, id, &reason, now);
            }
        }
    }

    /// What a faulty worker makes of a peer that has nothing.
    fn absent_by_peer(&mut self, hash: SpecHash, now: Time) {
        let Some(fetch) = self.end_fetch(hash) else {
            return;
        };
        for wanted in fetch.wanted {
            let proof = wanted.basis.proof(Hop::Disk, now);
            self.answer(wanted.waiters, None, &proof, &[], now);
        }
    }

    pub(super) fn source_failed(&mut self, hash: SpecHash, id: CallId, reason: &str, now: Time) {
        let Some(fetch) = self.fetches.get_mut(&hash) else {
            return;
        };
        let Some(index) = fetch.active.iter().position(|(call, _)| *call == id) else {
            return;
        };
        let (_, source) = fetch.active.swap_remove(index);
        fetch.hops.push(HopFailure {
            hop: self.sources.hop(source),
            reason: reason.to_owned(),
        });
        if fetch.wanted.is_empty() && fetch.active.is_empty() {
            self.end_fetch(hash);
        } else if !fetch.wanted.is_empty() {
            self.ask_next(hash, now);
        }
    }

    /// Whoever was asked before the one that gave the bytes, and has given none, is slower than a
    /// hedge allows: the answer names it, and others are asked before it for a while.
    fn note_overtaken(&mut self, hash: SpecHash, by: &Hop, now: Time) {
        let Some(fetch) = self.fetches.get_mut(&hash) else {
            return;
        };
        let gave = |(_, source): &&(CallId, Source)| self.sources.hop(*source) == *by;
        let Some(&(winner, _)) = fetch.active.iter().find(gave) else {
            return;
        };
        // Who was named may still wait for the bytes itself.
        let hinted: Vec<_> = fetch.hinted().map(Source::Peer).collect();
        for &(id, source) in &fetch.active {
            if id < winner {
                fetch.hops.push(HopFailure {
                    hop: self.sources.hop(source),
                    reason: "no bytes yet".into(),
                });
                if !hinted.contains(&source) {
                    self.sources.failed(source, true, now);
                }
            }
        }
    }

    fn complete(&mut self, hash: SpecHash, spec: &Spec, hop: Hop, now: Time) {
        self.note_overtaken(hash, &hop, now);
        let Some(fetch) = self.end_fetch(hash) else {
            return;
        };
        if hop != Hop::Disk {
            self.out.push(Output::Save(spec.clone()));
        }
        self.give_to_guests(spec);
        for wanted in fetch.wanted {
            let failed = [wanted.hops, fetch.hops.clone()].concat();
            if wanted.len.is_some_and(|len| len != spec.len()) {
                let hops = failed;
                self.fail(wanted.waiters, &GetError::NoBytes { hash, hops });
                continue;
            }
            let proof = wanted.basis.proof(hop.clone(), now);
            self.answer(wanted.waiters, Some(spec), &proof, &failed, now);
        }
    }

    fn fail_fetch(&mut self, hash: SpecHash, error: impl Fn(Vec<HopFailure>) -> GetError) {
        let Some(fetch) = self.end_fetch(hash) else {
            return;
        };
        for wanted in fetch.wanted {
            let hops = [wanted.hops, fetch.hops.clone()].concat();
            self.fail(wanted.waiters, &error(hops));
        }
    }

    /// Removes the fetch, its timer and whatever it still asks for.
    fn end_fetch(&mut self, hash: SpecHash) -> Option<Fetch> {
        let fetch = self.fetches.remove(&hash)?;
        self.fetch_ended = true;
        if let Some(at) = fetch.hedge_at {
            self.timers.remove(&(at, Timer::Hedge(hash)));
        }
        for (id, _) in &fetch.active {
            // A resolve's answer may still hold the truth about other names.
            if let Some(Call::Fetch { .. }) = self.calls.get(id) {
                self.calls.remove(id);
                self.out.push(Output::Cancel(*id));
            }
        }
        Some(fetch)
    }

    /// The hops of a fetch, those that are still awaited among them.
    pub(super) fn fetch_hops(&self, hash: &SpecHash) -> Vec<HopFailure> {
        let Some(fetch) = self.fetches.get(hash) else {
            return Vec::new();
        };
        let before = fetch.wanted.first().map(|wanted| wanted.hops.clone());
        let mut hops = before.unwrap_or_default();
        hops.extend(fetch.hops.iter().cloned());
        hops.extend(fetch.active.iter().map(|(_, source)| HopFailure {
            hop: self.sources.hop(*source),
            reason: "no bytes yet".into(),
        }));
        hops
    }
}
