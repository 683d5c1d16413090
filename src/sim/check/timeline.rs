use std::collections::BTreeMap;

use super::Seen;
use crate::catalog::{Content, Revision};
use crate::sim::history::Place;

/// What is known of one name: what it was from which revision until which.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    /// By the revision of the change, or by an epoch's base for what it took over.
    segments: BTreeMap<Place, Segment>,
    /// What it was at a revision, where the revision of the change is not known.
    shown: BTreeMap<Place, (Content, Seen)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) content: Content,
    /// It was still so here.
    pub(super) until: Revision,
    /// The first that said so.
    pub(super) seen: Seen,
}

/// Two statements about one name that cannot both be true.
#[derive(Debug)]
pub(super) struct Clash {
    /// What the other statement says that the name was.
    pub(super) content: Content,
    /// From where.
    pub(super) from: Place,
    /// Until where.
    pub(super) until: Revision,
    /// The other statement.
    pub(super) seen: Seen,
    /// Whether they agree on the revision and differ in its content.
    pub(super) same_revision: bool,
}

impl Timeline {
    pub(super) fn get(&self, from: Place) -> Option<&Segment> {
        self.segments.get(&from)
    }

    /// The newest known change at or below `place`, of the same epoch.
    pub(super) fn at(&self, place: Place) -> Option<(Place, Segment)> {
        let (&from, segment) = self.segments.range(..=place).next_back()?;
        (from.epoch == place.epoch).then_some((from, *segment))
    }

    /// The next known change above `from`, of the same epoch.
    pub(super) fn after(&self, from: Place) -> Option<(Place, Segment)> {
        let above = Place::new(from.epoch, from.rev.next());
        let (&next, segment) = self.segments.range(above..).next()?;
        (next.epoch == from.epoch).then_some((next, *segment))
    }

    /// Says that the name was `content` from `from` until `until`, without a change between.
    pub(super) fn claim(
        &mut self,
        from: Place,
        until: Revision,
        content: Content,
        seen: Seen,
    ) -> Result<(), Clash> {
        if let Some((before, segment)) = self.at(from) {
            let same_revision = before == from;
            if same_revision && segment.content == content && segment.until >= until {
                return Ok(());
            }
            if (same_revision && segment.content != content)
                || (!same_revision && segment.until >= from.rev)
            {
                return Err(segment.clash(before, same_revision));
            }
        }
        if let Some((next, segment)) = self.after(from)
            && next.rev <= until
        {
            return Err(segment.clash(next, false));
        }
        for (&place, &(shown, by)) in self.shown.range(from..=Place::new(from.epoch, until)) {
            if shown != content {
                let segment = Segment {
                    content: shown,
                    until: place.rev,
                    seen: by,
                };
                return Err(segment.clash(place, false));
            }
        }
        self.segments
            .entry(from)
            .and_modify(|segment| segment.until = segment.until.max(until))
            .or_insert(Segment {
                content,
                until,
                seen,
            });
        Ok(())
    }

    /// Says that the name was `content` at `place`, whenever it became so.
    pub(super) fn show(&mut self, place: Place, content: Content, seen: Seen) -> Result<(), Clash> {
        if let Some((from, segment)) = self.at(place)
            && segment.until >= place.rev
            && segment.content != content
        {
            return Err(segment.clash(from, false));
        }
        let &mut (shown, by) = self.shown.entry(place).or_insert((content, seen));
        if shown != content {
            let segment = Segment {
                content: shown,
                until: place.rev,
                seen: by,
            };
            return Err(segment.clash(place, false));
        }
        Ok(())
    }
}

impl Segment {
    fn clash(&self, from: Place, same_revision: bool) -> Clash {
        Clash {
            content: self.content,
            from,
            until: self.until,
            seen: self.seen,
            same_revision,
        }
    }
}
