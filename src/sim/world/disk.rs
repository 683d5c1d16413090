//! The coordinator's disk: what its writes come to, and what is looked at on it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::faults::Fault;
use super::publishers::Sent;
use super::site::{Asker, Job};
use super::{Step, World};
use crate::catalog::Entry;
use crate::proto::code::Refusal;
use crate::proto::coordinator::{Input, Written};
use crate::sim::history::{self, Place};
use crate::spec::{Spec, SpecHash};
use crate::store::journal;

impl World {
    /// A write of the machine ends, well or not.
    pub(super) fn write_ends(&mut self, generation: u64) {
        if generation != self.site.generation {
            return;
        }
        let Some(running) = &mut self.site.running else {
            return;
        };
        let written = match running.job.take() {
            Some(Job::Entries(entries)) => running.storage.write(&entries),
            Some(Job::Checkpoint(entries, retained)) => {
                self.rewrite(entries, retained);
                Written::All
            }
            None => return,
        };
        self.oracle.note(self.now, 8, 0, || {
            format!("coordinator disk says {written:?}")
        });
        match &written {
            Written::All => {}
            Written::Some { .. } => self.site.excused_until = self.now + Duration::from_secs(3),
            Written::Lost { .. } => {
                self.site.excused_until = self.now + Duration::from_secs(20);
                let pause = self.random.around(Duration::from_secs(1));
                self.later(pause, Step::Fault(Fault::PowerCut));
            }
        }
        self.drive(Input::Written(written));
        if let Some(running) = &mut self.site.running {
            // The view only repeats what the journal says.
            running.storage.apply_to_view();
        }
        self.note_compaction();
    }

    fn rewrite(&mut self, entries: Vec<Entry>, retained: BTreeSet<SpecHash>) {
        let Some(running) = &mut self.site.running else {
            return;
        };
        let reader = running.storage.vault.reader();
        let hashes = self.specs.iter().map(Spec::hash);
        let before: Vec<_> = hashes.filter(|hash| reader.has(*hash)).collect();
        running.storage.checkpoint(entries, retained);
        let gone = before.into_iter().filter(|hash| !reader.has(*hash));
        for hash in gone.collect::<Vec<_>>() {
            let at = self.now;
            self.oracle
                .event(history::Event::Collected { at, hash }, "coordinator ");
        }
    }

    fn note_compaction(&mut self) {
        let at = self.now;
        if let Some(running) = &mut self.site.running {
            let view = running.machine.view();
            let oldest = view.records.oldest();
            if oldest > running.oldest {
                running.oldest = oldest;
                let oldest = Place::new(view.epoch, oldest);
                self.oracle
                    .event(history::Event::Compacted { at, oldest }, "coordinator ");
            }
        }
    }

    /// The process dies. What of its last write reached the disk is a matter of chance, and more
    /// so if the power goes with it.
    pub(super) fn kill_site(&mut self, power: bool) {
        let Some(mut running) = self.site.running.take() else {
            return;
        };
        self.oracle.note(self.now, 9, u64::from(power), || {
            format!("coordinator is killed, power {power}")
        });
        if let Some(Job::Entries(entries)) = running.job.take()
            && self.random.percent(70)
        {
            let ops = self.site.disk.ops() + self.random.index(4);
            self.site.disk.power_off_after(ops);
            let _ = running.storage.write(&entries);
        }
        self.site.disk.repair();
        if power {
            self.site.disk = self.site.disk.crash(self.random.next());
        }
        for asker in running.asked.into_values() {
            match asker {
                Asker::Worker(caller) => {
                    let pause = self.travel();
                    self.fails(caller, pause, false);
                }
                Asker::Publisher(sent) => self.publish_lost(&sent),
                Asker::Pin | Asker::Nobody => {}
            }
        }
        let streams: Vec<_> = self.streams.keys().copied().collect();
        for stream in streams {
            self.break_stream(stream);
        }
    }

    /// S10: every body of the visible revision is there and right.
    pub(super) fn audit(&mut self) {
        self.later(Duration::from_secs(1), Step::Audit);
        self.audit_now();
        self.nobody_waits_too_long();
    }

    pub(super) fn audit_now(&mut self) {
        let (at, Some(running)) = (self.now, &self.site.running) else {
            return;
        };
        if !running.serves {
            return;
        }
        let view = &running.view;
        let reader = running.storage.vault.reader();
        let versions = view
            .records
            .iter()
            .filter_map(|(_, versions)| versions.last());
        let held = versions
            .filter_map(|version| version.content.hash())
            .filter(|hash| matches!(reader.body(*hash, None), Ok(Some(_))))
            .collect();
        let visible = Place::new(view.epoch, view.records.rev());
        let event = history::Event::Audited { at, visible, held };
        self.oracle.event(event, "coordinator ");
    }

    /// Copies the journal as it is.
    pub(super) fn back_up(&mut self) {
        let Some(running) = &self.site.running else {
            return;
        };
        if let Some(mut content) = self.site.disk.content(journal::FILE) {
            content.truncate(running.storage.vault.durable_end() as usize);
            self.site.backup = Some(content);
        }
    }

    /// The lease that the next start has.
    pub(super) fn change_lease(&mut self) {
        let choices = [200, 400, 600, 2_000, 6_000].map(Duration::from_millis);
        self.site.lease = *self.random.pick(&choices);
        self.site.longest = self.site.longest.max(self.site.lease);
    }

    pub(super) fn stage(&mut self, sent: &Sent) -> Result<(), Refusal> {
        let Some(running) = &mut self.site.running else {
            return Ok(());
        };
        for spec in &sent.specs {
            running.storage.stage(spec)?;
        }
        Ok(())
    }
}
