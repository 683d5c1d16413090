use std::collections::{BTreeMap, BTreeSet};

use super::steps::Step;
use super::{Op, Seen};
use crate::catalog::{Content, IdempotencyKey};
use crate::sim::history::{Place, Publish, PublishId};
use crate::spec::SpecName;

/// Which publish made which revision, as far as it can be known.
///
/// An unanswered publish may have made any later revision. What readers saw of a revision
/// narrows down who made it, and nobody makes two.
#[derive(Debug, Default)]
pub(super) struct Publishes {
    all: Vec<Logical>,
    /// Attempts without an answer.
    open: BTreeMap<PublishId, usize>,
    by_key: BTreeMap<(String, IdempotencyKey), usize>,
    /// Those that may have changed a name in a revision that is not known.
    touching: BTreeMap<SpecName, BTreeSet<usize>>,
    /// Names that a publish may or may not have changed in a revision that is known.
    unclear: BTreeSet<SpecName>,
    makers: BTreeMap<Place, Maker>,
}

/// A publish with all its repetitions.
#[derive(Debug)]
struct Logical {
    seen: Seen,
    key: Option<(String, IdempotencyKey)>,
    changes: BTreeMap<SpecName, Content>,
    /// The newest that anyone knew before the first attempt.
    floor: Option<Step>,
    /// Restores before the first attempt.
    restores: usize,
    /// Attempts that were not refused.
    alive: u32,
    /// The revision that only this publish can have made.
    made: Option<Place>,
    answer: Option<(Place, u32)>,
    /// Revisions that it may have made.
    suspected: BTreeSet<Place>,
}

#[derive(Debug)]
enum Maker {
    Known(usize),
    Among(BTreeSet<usize>),
}

/// Why no publish explains what was answered.
#[derive(Debug)]
pub(super) enum Unexplained {
    /// The publish that made the revision made the name something else.
    OtherContent(Seen),
    /// The publish that made the revision does not name it.
    OtherNames(Seen),
    /// Every publish that may have made the revision makes the name something else.
    NoContent,
    /// Nobody had sent a publish of the name that may be this revision.
    Nobody,
}

/// An answer to a publish that cannot be right.
#[derive(Debug)]
pub(super) struct Misplaced {
    pub(super) earlier: Option<Seen>,
    pub(super) why: String,
}

impl Misplaced {
    fn new(earlier: Option<Seen>, why: String) -> Self {
        Self { earlier, why }
    }
}

/// An answered publish, for the caller to note what it says of each name.
#[derive(Debug)]
pub(super) struct Answered {
    index: usize,
    pub(super) changes: Vec<(SpecName, Content)>,
    /// Where its first attempt began.
    pub(super) first: Seen,
}

impl Publishes {
    /// Notes an attempt after so many `restores`; `survives` tells whether a place outlived them.
    /// False when the attempt is open already.
    pub(super) fn invoke(
        &mut self,
        publish: &Publish,
        floor: Option<Step>,
        restores: usize,
        survives: impl Fn(Place) -> bool,
    ) -> bool {
        let changes: BTreeMap<_, _> = publish
            .changes
            .iter()
            .map(|change| (change.name.clone(), change.content))
            .collect();
        let key = publish.key.map(|key| (publish.by.clone(), key));
        let known = key.as_ref().and_then(|key| self.by_key.get(key)).copied();
        let before = known.filter(|&index| {
            let known = &self.all[index];
            known.alive > 0 && known.changes == changes
        });
        let repeats = before.filter(|&index| {
            let known = &self.all[index];
            known.made.map_or(known.restores == restores, &survives)
        });
        let index = repeats.unwrap_or_else(|| {
            // Across a restore it may happen again, or be remembered: it is as old as it was.
            let before = before.map(|index| &self.all[index]);
            let seen = Seen::new(publish.invoked, Op::Publish(publish.id));
            let logical = Logical {
                seen: before.map_or(seen, |before| before.seen),
                key: key.clone(),
                floor: before.map_or(floor, |before| before.floor),
                restores,
                changes,
                alive: 0,
                made: None,
                answer: None,
                suspected: BTreeSet::new(),
            };
            self.add(logical)
        });
        self.all[index].alive += 1;
        if let Some(key) = key {
            self.by_key.insert(key, index);
        }
        self.open.insert(publish.id, index).is_none()
    }

    fn add(&mut self, logical: Logical) -> usize {
        let index = self.all.len();
        for name in logical.changes.keys() {
            self.touching.entry(name.clone()).or_default().insert(index);
        }
        self.all.push(logical);
        index
    }

    /// Attempts that were never answered.
    pub(super) fn unanswered(&self) -> usize {
        self.open.len()
    }

    /// Whether every change of the name is known, once and for all.
    pub(super) fn settled(&self, name: &SpecName) -> bool {
        self.touching.get(name).is_none_or(BTreeSet::is_empty) && !self.unclear.contains(name)
    }

    /// Takes an answered attempt; `None` if there is no such one.
    pub(super) fn close(&mut self, id: PublishId) -> Option<Answered> {
        let index = self.open.remove(&id)?;
        let logical = &self.all[index];
        Some(Answered {
            index,
            changes: logical.changes.clone().into_iter().collect(),
            first: logical.seen,
        })
    }

    /// An attempt that did not happen.
    pub(super) fn refuse(&mut self, answered: &Answered) -> Result<(), Misplaced> {
        let logical = &mut self.all[answered.index];
        logical.alive -= 1;
        if logical.alive > 0 || logical.answer.is_some() {
            return Ok(());
        }
        if let Some(made) = logical.made {
            let why = format!("refused, and revision {made} is its work");
            return Err(Misplaced::new(Some(logical.seen), why));
        }
        self.untouch(answered.index);
        self.withdraw(answered.index, None)
    }

    /// An attempt that was acknowledged at `place` and changed so many names.
    pub(super) fn acknowledge(
        &mut self,
        answered: &Answered,
        place: Place,
        changed: u32,
    ) -> Result<(), Misplaced> {
        let index = answered.index;
        let logical = &mut self.all[index];
        if let Some(before) = logical.answer {
            if before != (place, changed) {
                let why = format!(
                    "acknowledged at {place} with {changed} changes, and before with the same \
                     key at {} with {} changes",
                    before.0, before.1
                );
                return Err(Misplaced::new(Some(logical.seen), why));
            }
            return Ok(());
        }
        logical.answer = Some((place, changed));
        let wanted = (changed > 0).then_some(place);
        if let Some(made) = logical.made
            && wanted != Some(made)
        {
            let why = format!("acknowledged at {place}, and revision {made} is its work too");
            return Err(Misplaced::new(Some(logical.seen), why));
        }
        if wanted.is_some() {
            self.make(index, place)?;
        }
        let complete = changed as usize == self.all[index].changes.len();
        if wanted.is_some() && !complete {
            self.unclear.extend(self.all[index].changes.keys().cloned());
        }
        self.untouch(index);
        self.withdraw(index, wanted)
    }

    fn make(&mut self, index: usize, place: Place) -> Result<(), Misplaced> {
        if let Some(floor) = self.all[index].floor
            && floor.place >= place
        {
            let why = format!(
                "made revision {place}, and {} was known before it was sent",
                floor.place
            );
            return Err(Misplaced::new(Some(floor.seen), why));
        }
        match self.makers.get(&place) {
            Some(&Maker::Known(other)) if !self.same(other, index) => {
                let why = format!("made revision {place}, which another publish has made");
                return Err(Misplaced::new(Some(self.all[other].seen), why));
            }
            Some(Maker::Among(others)) => {
                if !others.iter().any(|&other| self.same(other, index)) {
                    let other = others.first().map(|&other| self.all[other].seen);
                    let why = format!("made revision {place}, in which readers saw other changes");
                    return Err(Misplaced::new(other, why));
                }
                for other in others.clone() {
                    self.all[other].suspected.remove(&place);
                }
            }
            _ => {}
        }
        self.makers.insert(place, Maker::Known(index));
        self.all[index].made = Some(place);
        Ok(())
    }

    fn same(&self, a: usize, b: usize) -> bool {
        a == b || (self.all[a].key.is_some() && self.all[a].key == self.all[b].key)
    }

    fn untouch(&mut self, index: usize) {
        for name in self.all[index].changes.keys() {
            if let Some(touching) = self.touching.get_mut(name) {
                touching.remove(&index);
            }
        }
    }

    /// Says that a publish made no revision but `kept`, and follows what that leaves of others.
    fn withdraw(&mut self, index: usize, kept: Option<Place>) -> Result<(), Misplaced> {
        let mut left = vec![(index, kept)];
        while let Some((index, kept)) = left.pop() {
            for place in std::mem::take(&mut self.all[index].suspected) {
                if Some(place) == kept {
                    continue;
                }
                let Some(Maker::Among(others)) = self.makers.get_mut(&place) else {
                    continue;
                };
                others.remove(&index);
                match (others.len(), others.first().copied()) {
                    (0, _) | (_, None) => {
                        let why =
                            format!("did not make revision {place}, and nobody else can have");
                        return Err(Misplaced::new(Some(self.all[index].seen), why));
                    }
                    (1, Some(only)) => {
                        self.commit(only, place);
                        left.push((only, Some(place)));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Only this publish can have made that revision.
    fn commit(&mut self, index: usize, place: Place) {
        self.makers.insert(place, Maker::Known(index));
        self.all[index].made = Some(place);
        self.unclear.extend(self.all[index].changes.keys().cloned());
        self.untouch(index);
    }

    /// Finds who may have made `name` this `content` in the revision at `place`.
    pub(super) fn explain(
        &mut self,
        place: Place,
        name: &SpecName,
        content: Content,
    ) -> Result<Result<(), Misplaced>, Unexplained> {
        let candidates: BTreeSet<usize> = match self.makers.get(&place) {
            Some(&Maker::Known(maker)) => {
                let maker = &self.all[maker];
                return match maker.changes.get(name) {
                    Some(made) if *made == content => Ok(Ok(())),
                    Some(_) => Err(Unexplained::OtherContent(maker.seen)),
                    None => Err(Unexplained::OtherNames(maker.seen)),
                };
            }
            Some(Maker::Among(candidates)) => candidates.clone(),
            None => {
                let touching = self.touching.get(name).into_iter().flatten().copied();
                touching
                    .filter(|&index| {
                        self.all[index]
                            .floor
                            .is_none_or(|floor| floor.place < place)
                    })
                    .collect()
            }
        };
        let makes = |&index: &usize| self.all[index].changes.get(name) == Some(&content);
        let (fit, unfit): (BTreeSet<_>, BTreeSet<_>) = candidates.into_iter().partition(makes);
        if fit.is_empty() {
            let named = |&index: &usize| self.all[index].changes.contains_key(name);
            return Err(match unfit.iter().any(named) {
                true => Unexplained::NoContent,
                false => Unexplained::Nobody,
            });
        }
        for index in unfit {
            self.all[index].suspected.remove(&place);
        }
        if let (1, Some(&only)) = (fit.len(), fit.first()) {
            self.commit(only, place);
            return Ok(self.withdraw(only, Some(place)));
        }
        for &index in &fit {
            self.all[index].suspected.insert(place);
        }
        self.makers.insert(place, Maker::Among(fit));
        Ok(Ok(()))
    }
}
