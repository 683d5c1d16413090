//! What happens while nothing goes wrong: before a scenario begins, and where it is looked whether
//! all ends well.

use std::sync::Arc;

use super::World;
use crate::proto::coordinator;
use crate::proto::worker::{self, CallId};
use crate::sim::model::packet::Packet;
use crate::sim::model::scenario::{TICK, Wish};

/// How long everything goes well before all must be as it should be.
const GOOD_TICKS: u32 = 12;

impl World {
    /// Publishes revision 1 and lets everyone get it and a lease.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        self.drive_site(coordinator::Input::Wake)?;
        let wishes: Vec<_> = (0..self.scenario.names - self.scenario.absent)
            .map(|name| Wish {
                name,
                body: Some("1"),
                expect: None,
            })
            .collect();
        self.send_publish(u64::MAX, &wishes)?;
        self.settle()?;
        for _ in 0..4 {
            self.now = self.now + TICK;
            self.wake()?;
            self.settle()?;
        }
        self.packets.clear();
        self.read_all()?;
        self.backup = Arc::new(self.site.journal.clone());
        let renewals = self.scenario.renewals;
        for worker in 0..self.places.len() {
            Arc::make_mut(&mut self.places[worker]).renewals_left = renewals;
            if worker >= self.scenario.workers - self.scenario.cold {
                self.cool(worker)?;
            }
        }
        Ok(())
    }

    /// Begins `worker` anew, without a lease.
    fn cool(&mut self, worker: usize) -> Result<(), String> {
        if self.scenario.empty {
            self.drive_place(worker, worker::Input::Leave)?;
            self.settle()?;
            let place = Arc::make_mut(&mut self.places[worker]);
            (place.mark, place.kept) = (None, None);
        }
        self.restart(worker)
    }

    /// Delivers everything in order until nothing is on its way.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        loop {
            self.lose_vain();
            let serves = self.site.serves();
            let mut packets = self.packets.iter();
            let next = packets.position(|packet| serves || !packet.goes_up());
            match next {
                _ if self.site.writing.is_some() => self.written()?,
                None => return Ok(()),
                Some(index) => {
                    if !self.deliver(index, false)? {
                        self.packets.remove(index);
                    }
                }
            }
        }
    }

    /// Lets everything go well for a while, and looks whether all is as it should be then.
    pub(in crate::sim::model) fn settles(mut self) -> Result<(), String> {
        if self.judge.is_rolled_back() {
            return Ok(());
        }
        for place in &mut self.places {
            let place = Arc::make_mut(place);
            place.renewals_left = u32::MAX;
            place.asleep = None;
        }
        for _ in 0..GOOD_TICKS {
            self.find_out();
            self.settle()?;
            self.read_all()?;
            self.now = self.now + TICK;
            self.wake()?;
        }
        self.settle()?;
        self.read_all()?;
        self.is_well()
    }

    /// Whoever waits for a message that is lost is told so, as by a connection that is gone.
    fn find_out(&mut self) {
        for worker in 0..self.places.len() {
            let place = &self.places[worker];
            let mut lost = Vec::new();
            for &raw in &place.live {
                let on_its_way = self.packets.iter().any(|packet| {
                    let to = packet.call();
                    to.is_some_and(|to| place.wants(to) && to.call.raw() == raw)
                });
                let stream = place.streams.iter().find(|(call, _)| call.raw() == raw);
                let heard = stream.is_some_and(|(call, stream)| {
                    self.site.streams.get(stream) == Some(&place.to(*call))
                });
                if !on_its_way && !heard {
                    lost.push(raw);
                }
            }
            for raw in lost {
                let to = place.to(CallId::from_raw(raw));
                self.packets.push(Packet::Lost(to));
            }
        }
    }

    fn is_well(&self) -> Result<(), String> {
        let ledger = self.site.machine.ledger();
        let tip = ledger.tip().rev();
        if self.site.view.records.rev() < tip {
            return Err(format!("L1: revision {tip} is never visible"));
        }
        if self.judge.reads() > 0 {
            return Err("L4: a read never ends".into());
        }
        for place in self.places.iter().filter(|place| !place.left) {
            let worker = place.index;
            let token = place.sight.run_token(place.clock(self.now));
            let known = token.map(|token| (token.epoch, token.rev));
            if known != Some((ledger.epoch(), tip)) {
                return Err(format!(
                    "L3: worker {worker} is not leased and current at {tip}, long after all is well: {:?}",
                    place.sight
                ));
            }
        }
        Ok(())
    }
}
