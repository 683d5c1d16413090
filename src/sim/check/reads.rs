use super::publishes::Unexplained;
use super::steps::Step;
use super::timeline::Clash;
use super::{
    Checker, Invariant, LONGEST_READ, Op, Seen, Violation, described, record, record_rev, said,
    violation,
};
use crate::answer::Target;
use crate::catalog::{Content, Revision};
use crate::proto::Time;
use crate::sim::history::{Ask, Failed, Mode, Outcome, Place, Proof, Read};
use crate::spec::{SpecHash, SpecName};

/// An answer about a name, with its places resolved.
struct Told<'a> {
    read: &'a Read,
    name: &'a SpecName,
    content: Content,
    mode: Mode,
    /// As the answer says.
    snapshot: Place,
    /// Both under the epoch in which they were made.
    place: Place,
    record: Place,
}

impl Told<'_> {
    fn op(&self) -> Op {
        Op::Read(self.read.id)
    }

    fn absent(&self) -> bool {
        matches!(self.content, Content::Deleted)
    }

    fn is_strict(&self) -> bool {
        self.read.run.is_none() && matches!(self.read.ask, Ask::Strict | Ask::Verified)
    }

    fn seen(&self) -> Seen {
        Seen::new(self.read.responded, self.op()).content(self.content)
    }

    fn says(&self) -> String {
        format!(
            "worker {} (start {}) said that `{}` is {} since {} at {}",
            self.read.worker,
            self.read.incarnation,
            self.name,
            said(self.content),
            self.record,
            self.place
        )
    }

    fn violation(&self, invariant: Invariant, earlier: Option<Seen>, why: &str) -> Violation {
        let why = format!("{}, {why}", self.says());
        violation(invariant, earlier, self.op(), why)
    }
}

impl Checker {
    pub(super) fn read(&mut self, read: &Read) -> Result<(), Violation> {
        let op = Op::Read(read.id);
        if read.invoked > read.responded {
            return Err(record(op, "it ended before it began".into()));
        }
        let (content, proof) = match read.outcome {
            Outcome::Answered { content, proof } => (content, proof),
            Outcome::Failed(failed) => return self.read_failed(read, failed),
        };
        *self.report.reads.entry(proof.mode).or_default() += 1;
        match (&read.target, read.ask) {
            (&Target::Hash(hash), _) | (_, Ask::Pinned(hash)) => self.exactly(op, hash, content),
            (Target::Name(name), _) => self.read_name(read, name, content, proof),
        }
    }

    /// S3 for a read by hash.
    fn exactly(&self, op: Op, wanted: SpecHash, content: Content) -> Result<(), Violation> {
        let len = self.lens.get(&wanted).copied();
        match content {
            Content::Present { hash, len: got } if hash == wanted && len.unwrap_or(got) == got => {
                Ok(())
            }
            _ => {
                let why = format!("{} was wanted, it got {}", wanted.short(), said(content));
                Err(violation(Invariant::S3, None, op, why))
            }
        }
    }

    fn read_name(
        &mut self,
        read: &Read,
        name: &SpecName,
        content: Content,
        proof: Proof,
    ) -> Result<(), Violation> {
        let op = Op::Read(read.id);
        self.report.absences += u64::from(content == Content::Deleted);
        let Some(snapshot) = proof.snapshot else {
            let why = format!("its answer about `{name}` names no snapshot");
            return Err(violation(Invariant::S3, None, op, why));
        };
        let place = self.vouched(op, snapshot)?;
        let rev = record_rev(proof.record);
        let told = Told {
            read,
            name,
            content,
            mode: proof.mode,
            snapshot: snapshot.into(),
            place,
            record: self.lineage.resolve(Place::new(place.epoch, rev)),
        };
        if rev > told.snapshot.rev {
            return Err(told.violation(
                Invariant::S2,
                None,
                "and the change is newer than the snapshot",
            ));
        }
        self.of_its_run(&told)?;
        self.as_asked(&told)?;
        self.fresh(&told)?;
        self.published(&told)?;
        self.consistent(&told)?;
        self.monotone(&told)?;
        self.learn(&told);
        Ok(())
    }

    /// S5 for a read of a run.
    fn of_its_run(&self, told: &Told<'_>) -> Result<(), Violation> {
        let Some(id) = told.read.run else {
            return Ok(());
        };
        let Some(run) = self.runs.get(&id) else {
            return Err(record(told.op(), format!("run {id} is not under way")));
        };
        let began = Seen::new(run.responded, Op::Run(id));
        let token = self.lineage.resolve(run.token.into());
        if told.place != token {
            let why = format!("and its run reads at {token}");
            return Err(told.violation(Invariant::S5, Some(began), &why));
        }
        match self.acknowledged_after(told, run.invoked) {
            Some((seen, why)) => Err(told.violation(Invariant::S5, Some(seen), &why)),
            None => Ok(()),
        }
    }

    /// What was acknowledged before `time` and is not in the answer's snapshot.
    fn acknowledged_after(&self, told: &Told<'_>, time: Time) -> Option<(Seen, String)> {
        let name = self.names.get(told.name)?;
        let changed = name.acknowledged.before(time);
        // If it was so already, an older revision says the same.
        let confirmed = name.confirmed.before(time);
        let confirmed = confirmed.filter(|step| step.seen.content != Some(told.content));
        let missed = |step: &Step| step.place > told.place;
        let step = changed
            .filter(missed)
            .or_else(|| confirmed.filter(missed))?;
        let (at, time) = (step.seen.at.as_micros(), time.as_micros());
        let why = format!(
            "and a publish of it was acknowledged at {}, at {at} us, before {time} us",
            step.place
        );
        Some((step.seen, why))
    }

    /// What each freshness adds, but for Strict's order: S1, S5, S6, S7, S9.
    fn as_asked(&self, told: &Told<'_>) -> Result<(), Violation> {
        match told.read.ask {
            Ask::Strict if told.is_strict() && !matches!(told.mode, Mode::Lease | Mode::Asked) => {
                Err(told.violation(
                    Invariant::S1,
                    None,
                    "by a weaker promise than it was asked for",
                ))
            }
            Ask::Verified if told.is_strict() && told.mode != Mode::Asked => {
                Err(told.violation(Invariant::S1, None, "without having asked the coordinator"))
            }
            Ask::At(rev) if told.snapshot.rev != rev => {
                let why = format!("and revision {rev} was wanted");
                let gone = self.retained.gone(Place::new(told.snapshot.epoch, rev));
                let invariant = if gone { Invariant::S9 } else { Invariant::S5 };
                Err(told.violation(invariant, None, &why))
            }
            Ask::AtLeast(token) if told.place < self.lineage.resolve(token) => {
                let why = format!("and {token} at least was wanted");
                Err(told.violation(Invariant::S6, None, &why))
            }
            Ask::Bounded(bound) => {
                let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
                let oldest = told.read.invoked.as_micros().saturating_sub(micros);
                match self.acknowledged_after(told, Time::from_micros(oldest)) {
                    Some((seen, why)) => Err(told.violation(Invariant::S7, Some(seen), &why)),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// S1 and S2 for a strict read: not behind anything that was answered before it began.
    fn fresh(&self, told: &Told<'_>) -> Result<(), Violation> {
        if !told.is_strict() {
            return Ok(());
        }
        let invoked = told.read.invoked;
        let floor = self
            .names
            .get(told.name)
            .and_then(|name| name.records.before(invoked));
        if let Some(floor) = floor
            && floor.place.epoch >= told.place.epoch
            && floor.place > told.record
        {
            let plain = match floor.seen.op {
                Op::Publish(_) => Invariant::S1,
                _ => Invariant::S2,
            };
            let why = format!("and {} had been answered before it began", floor.place);
            return Err(told.violation(
                self.blamed(plain, told, floor.seen),
                Some(floor.seen),
                &why,
            ));
        }
        match self.acknowledged_after(told, invoked) {
            Some((seen, why)) => {
                let invariant = self.blamed(Invariant::S1, told, seen);
                Err(told.violation(invariant, Some(seen), &why))
            }
            None => Ok(()),
        }
    }

    fn blamed(&self, plain: Invariant, told: &Told<'_>, earlier: Seen) -> Invariant {
        let asked = told.mode == Mode::Asked;
        self.blame(plain, Some(earlier), asked, told.absent())
    }

    /// S2 and S3: the record is what a publish made in that revision.
    fn published(&mut self, told: &Told<'_>) -> Result<(), Violation> {
        let known = self
            .names
            .get(told.name)
            .and_then(|name| name.timeline.get(told.record));
        match known {
            Some(known) if known.content == told.content => return Ok(()),
            Some(known) => {
                let why = format!("and that revision made it {}", said(known.content));
                let seen = known.seen;
                return Err(told.violation(Invariant::S3, Some(seen), &why));
            }
            None => {}
        }
        if told.record.rev == Revision::ZERO {
            return match told.absent() {
                true => Ok(()),
                false => Err(told.violation(Invariant::S3, None, "without a record")),
            };
        }
        let explained = self.publishes.explain(told.record, told.name, told.content);
        let (invariant, earlier, why) = match explained {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(misplaced)) => {
                let invariant = misplaced
                    .earlier
                    .map_or(Invariant::S2, |seen| self.blamed(Invariant::S2, told, seen));
                let why = format!("so that an earlier publish {}", misplaced.why);
                return Err(told.violation(invariant, misplaced.earlier, &why));
            }
            Err(Unexplained::OtherContent(seen)) => (
                Invariant::S3,
                Some(seen),
                "and that revision made it something else",
            ),
            Err(Unexplained::NoContent) => (
                Invariant::S3,
                None,
                "and no publish that may be that revision made it so",
            ),
            Err(Unexplained::OtherNames(seen)) => (
                Invariant::S2,
                Some(seen),
                "and that revision did not change it",
            ),
            Err(Unexplained::Nobody) => (Invariant::S2, None, "and nobody had published that"),
        };
        let invariant = match earlier {
            Some(seen) => self.blamed(invariant, told, seen),
            None => self.blame(invariant, None, false, told.absent()),
        };
        Err(told.violation(invariant, earlier, why))
    }

    /// S2, S5, S7: the name did not change between the record and the snapshot.
    fn consistent(&mut self, told: &Told<'_>) -> Result<(), Violation> {
        let pieces = self.lineage.pieces(told.place, told.record.rev);
        for (from, until) in pieces {
            let name = self.names.entry(told.name.clone()).or_default();
            let claimed = name.timeline.claim(from, until, told.content, told.seen());
            claimed.map_err(|clash| self.inconsistent(told, &clash))?;
            self.retained.note(told.name, from, told.content);
        }
        Ok(())
    }

    fn inconsistent(&self, told: &Told<'_>, clash: &Clash) -> Violation {
        let plain = match told.read.ask {
            _ if told.read.run.is_some() => Invariant::S5,
            Ask::At(_) => Invariant::S5,
            _ if clash.same_revision => Invariant::S3,
            _ => Invariant::S2,
        };
        let invariant = self.blamed(plain, told, clash.seen);
        told.violation(invariant, Some(clash.seen), &described(clash))
    }

    /// S6.
    fn monotone(&mut self, told: &Told<'_>) -> Result<(), Violation> {
        let used = matches!(
            told.read.ask,
            Ask::Strict | Ask::AtLeast(_) | Ask::Bounded(_)
        );
        if !used || told.read.run.is_some() {
            return Ok(());
        }
        let steps = self.workers.entry(told.read.worker).or_default();
        if let Some(step) = steps.before(told.read.invoked)
            && step.place > told.snapshot
        {
            let why = format!("and it had used {} before", step.place);
            return Err(told.violation(Invariant::S6, Some(step.seen), &why));
        }
        steps.rise(told.snapshot, told.seen());
        let kept = told.read.responded.as_micros();
        let kept = kept.saturating_sub(LONGEST_READ.as_micros() as u64);
        steps.forget(Time::from_micros(kept));
        Ok(())
    }

    /// What later operations are held against.
    fn learn(&mut self, told: &Told<'_>) {
        let seen = told.seen();
        if let Some(name) = self.names.get_mut(told.name) {
            name.records.rise(told.record, seen);
        }
        self.newest.rise(told.place, seen);
    }

    /// S4 and S9 for typed errors; the others promise nothing.
    fn read_failed(&mut self, read: &Read, failed: Failed) -> Result<(), Violation> {
        self.report.failed_reads += 1;
        let Ask::At(rev) = read.ask else {
            return Ok(());
        };
        let op = Op::Read(read.id);
        match failed {
            Failed::Compacted => match self.retained.pin_of(rev, read.invoked, read.responded) {
                Some(pin) => {
                    let why = format!("revision {rev} is compacted for it, and it is pinned");
                    Err(violation(Invariant::S9, Some(pin), op, why))
                }
                None => Ok(()),
            },
            Failed::Future => match self.newest.before(read.invoked) {
                Some(step)
                    if step.place.epoch == self.lineage.newest() && step.place.rev >= rev =>
                {
                    let why = format!(
                        "revision {rev} does not exist for it, and {} had been seen",
                        step.place
                    );
                    Err(violation(Invariant::S4, Some(step.seen), op, why))
                }
                _ => Ok(()),
            },
            Failed::Other => Ok(()),
        }
    }
}
