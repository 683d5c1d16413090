//! What goes wrong, and the quiet time after it.

use std::time::Duration;

use super::{QUIET, Step, World};
use crate::catalog::Epoch;
use crate::proto::Time;
use crate::proto::worker::Input;
use crate::sim::history::{self, PinId, Place};
use crate::store::file::sim::{Op, SimDisk};
use crate::store::journal;
use crate::store::memory;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Coordinator,
    /// What ends a disk that failed.
    PowerCut,
    Worker,
    Leave,
    Suspend,
    Partition,
    Stream,
    Wall,
    Full,
    Fsync,
    Rot,
    Restore,
    Backup,
    Compact,
    /// A disk that acknowledges what it does not write.
    Lost,
    /// Some are cut off from the coordinator alone.
    Apart,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    fn mean(&self, fault: Fault) -> Duration {
        let faults = &self.plan.faults;
        match fault {
            Fault::Coordinator => faults.coordinator,
            Fault::Worker => faults.worker,
            Fault::Leave => faults.leave,
            Fault::Suspend => faults.suspend,
            Fault::Partition => faults.partition,
            Fault::Stream => faults.stream,
            Fault::Wall => faults.wall,
            Fault::Full => faults.full,
            Fault::Fsync => faults.fsync,
            Fault::Rot => faults.rot,
            Fault::Restore => faults.restore,
            Fault::Backup => faults.restore / 3,
            Fault::Compact => faults.compact,
            Fault::Lost => faults.lost,
            Fault::PowerCut | Fault::Apart => Duration::ZERO,
        }
    }

    pub(super) fn plan_faults(&mut self) {
        for fault in [
            Fault::Coordinator,
            Fault::Worker,
            Fault::Leave,
            Fault::Suspend,
            Fault::Partition,
            Fault::Stream,
            Fault::Wall,
            Fault::Full,
            Fault::Fsync,
            Fault::Rot,
            Fault::Restore,
            Fault::Backup,
            Fault::Compact,
            Fault::Lost,
        ] {
            self.plan_fault(fault);
        }
        if self.plan.apart > 0 {
            let quarter = self.plan.length / 4;
            self.later(quarter, Step::Fault(Fault::Apart));
            self.later(quarter * 3, Step::Mended(Fault::Apart, self.plan.apart));
        }
    }

    fn plan_fault(&mut self, fault: Fault) {
        let mean = self.mean(fault);
        if mean > Duration::ZERO {
            let pause = self.random.around(mean);
            self.later(pause, Step::Fault(fault));
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if fault == Fault::PowerCut {
            return self.site_dies(true);
        }
        if self.quiet {
            return;
        }
        self.plan_fault(fault);
        self.oracle.note(self.now, 11, fault as u64, || {
            format!("coordinator? fault {fault:?}")
        });
        let worker = self.random.index(self.nodes.len());
        match fault {
            Fault::Coordinator => {
                let running = self.site.running.as_ref();
                let lost = running.is_some_and(|running| running.machine.lost().is_some());
                // The bytes of a failed fsync may be read back and still never be written: until
                // the power is cut nobody can tell.
                let power = lost || self.random.percent(60);
                if self.site.serves() {
                    self.site_dies(power);
                }
            }
            Fault::Worker => self.node_dies(worker),
            Fault::Leave => self.node_leaves(worker),
            Fault::Suspend => {
                let pause = self.random.span((ms(50), self.plan.lease * 3));
                self.suspend_node(worker, pause);
            }
            Fault::Partition => self.cut_off(worker),
            Fault::Stream => {
                let streams: Vec<_> = self.streams.keys().copied().collect();
                if !streams.is_empty() {
                    let stream = *self.random.pick(&streams);
                    self.break_stream(stream);
                }
            }
            Fault::Wall => {
                let by = self.random.below(1_200_000_000) as i64 - 600_000_000;
                match self.random.percent(20) {
                    true => self.site.clock.jump(by),
                    false => self.nodes[worker].clock.jump(by),
                }
            }
            Fault::Full => {
                self.site.disk.space_left(Some(self.random.below(3_000)));
                let pause = self.random.around(Duration::from_secs(1));
                self.site.excused_until = self.now + pause + Duration::from_secs(3);
                self.later(pause, Step::Mended(Fault::Full, 0));
            }
            Fault::Fsync if self.site.serves() => self.site.disk.fail_next(Op::SyncData),
            Fault::Rot => self.nodes[worker].blobs.inject(memory::Fault::FlipBit),
            Fault::Restore => self.restore(),
            Fault::Backup if self.site.serves() => self.back_up(),
            Fault::Apart => self.part(self.plan.apart, false),
            Fault::Compact => self.drive(crate::proto::coordinator::Input::Compact),
            Fault::Lost if self.site.serves() && !self.site.lied => self.lose_syncs(),
            Fault::Fsync | Fault::Backup | Fault::Lost | Fault::PowerCut => {}
        }
    }

    pub(super) fn mended(&mut self, fault: Fault, of: usize) {
        match fault {
            Fault::Full => self.site.disk.space_left(None),
            Fault::Partition => {
                self.nodes[of].up.to = true;
                self.nodes[of].up.from = true;
            }
            Fault::Leave => self.node_dies(of),
            Fault::Lost => self.site.disk.lie(false),
            Fault::Apart => self.part(of, true),
            _ => {}
        }
    }

    /// Syncs are lost from now on. Where some are done again before the power is cut, a hole stays.
    fn lose_syncs(&mut self) {
        self.site.lied = true;
        self.site.disk.lie(true);
        let until = self.random.span((ms(200), ms(3_000)));
        self.later(until, Step::Mended(Fault::Lost, 0));
        let cut = self.random.span((ms(200), ms(3_000)));
        self.later(cut, Step::Fault(Fault::PowerCut));
    }

    /// Cuts the first workers off from the coordinator, or joins them to it again.
    fn part(&mut self, workers: usize, joined: bool) {
        for node in self.nodes.iter_mut().take(workers) {
            (node.up.to, node.up.from) = (joined, joined);
        }
    }

    fn site_dies(&mut self, power: bool) {
        if self.site.running.is_none() {
            return;
        }
        self.kill_site(power);
        if self.plan.faults.lease && !self.quiet {
            self.change_lease();
        }
        let pause = self.random.span((ms(5), ms(1_500)));
        self.later(pause, Step::SiteStarts);
    }

    fn restore(&mut self) {
        let Some(backup) = self.site.backup.take() else {
            return;
        };
        if !self.site.serves() {
            return;
        }
        self.kill_site(true);
        self.site.disk = SimDisk::default();
        self.site.disk.put(journal::FILE, &backup);
        self.site.restores = true;
        // A restored journal knows nothing of longer leases: the operator keeps the setting.
        self.site.lease = self.site.longest;
        let pause = self.random.span((ms(5), ms(1_500)));
        self.later(pause, Step::SiteStarts);
    }

    /// Says that a new epoch begins.
    pub(super) fn restored(&mut self, epoch: Epoch, base: Place) {
        let at = self.now;
        for (id, _) in std::mem::take(&mut self.site.pins).into_values() {
            let id = PinId(id);
            self.oracle
                .event(history::Event::Unpinned { id, at }, "coordinator ");
        }
        self.runs_are_over();
        let event = history::Event::Restored { at, epoch, base };
        self.oracle.event(event, "coordinator ");
    }

    fn node_dies(&mut self, worker: usize) {
        let power = self.random.percent(30) && !self.quiet && self.nodes.len() <= 20;
        self.kill_node(worker, power);
        let pause = self.random.span((ms(1), ms(800)));
        self.later(pause, Step::NodeStarts(worker));
    }

    /// It gives its lease back, and its readers go on for a while.
    fn node_leaves(&mut self, worker: usize) {
        if self.nodes[worker].asleep(self.now).is_some() {
            return;
        }
        self.tell(worker, Input::Leave);
        let pause = self.random.span((ms(50), ms(1_500)));
        self.later(pause, Step::Mended(Fault::Leave, worker));
    }

    fn cut_off(&mut self, worker: usize) {
        let up = &mut self.nodes[worker].up;
        if !(up.to && up.from) {
            return;
        }
        match self.random.below(3) {
            0 => up.to = false,
            1 => up.from = false,
            _ => (up.to, up.from) = (false, false),
        }
        let pause = match self.random.percent(50) {
            true => self.random.span((ms(20), ms(500))),
            false => self.random.span((ms(500), ms(8_000))),
        };
        self.later(pause, Step::Mended(Fault::Partition, worker));
    }

    /// No fault happens from now on, and what is broken gets better.
    pub(super) fn fall_quiet(&mut self) {
        self.quiet = true;
        self.site.disk.space_left(None);
        for node in &mut self.nodes {
            node.up.to = true;
            node.up.from = true;
        }
        self.oracle
            .note(self.now, 12, 0, || "coordinator? all is quiet".into());
    }

    /// From then on nothing may fail any more.
    pub(super) fn settled_at(&self) -> Time {
        Time::default() + self.plan.length + QUIET * 2 / 3
    }

    /// L1, L3 and L4 at the end.
    pub(super) fn finish(&mut self) {
        if self.oracle.failed() {
            return;
        }
        self.audit_now();
        if self.site.refuses || self.oracle.is_betrayed() {
            // Until an operator restores a backup nothing more can be asked of anyone.
            return;
        }
        let Some(running) = &self.site.running else {
            return self
                .oracle
                .fail(self.now, "the coordinator is down".into(), String::new());
        };
        let visible = Place::new(running.view.epoch, running.view.records.rev());
        let mut wrong = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let sight = node
                .machine
                .as_ref()
                .map(crate::proto::worker::Worker::sight);
            let replica = sight.and_then(|sight| sight.replica());
            let shown = replica.map(|replica| Place::new(replica.epoch(), replica.rev()));
            if shown != Some(visible) {
                wrong.push(format!(
                    "L3: w{index} shows {shown:?}, {visible} is visible"
                ));
            }
            let stuck = node
                .open
                .values()
                .filter(|open| open.is_due(self.now))
                .count();
            if stuck > 0 {
                wrong.push(format!("L4: {stuck} reads of w{index} never ended"));
            }
        }
        let busy = self
            .publishers
            .iter()
            .filter(|publisher| !publisher.is_idle());
        if busy.count() > 0 {
            wrong.push("L1: a publish never ended".into());
        }
        if let Some(why) = wrong.into_iter().next() {
            let who = why.split_whitespace().find(|word| word.starts_with('w'));
            let who = format!("{} ", who.unwrap_or("w"));
            self.oracle.fail(self.now, why, who);
        }
    }
}
