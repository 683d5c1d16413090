//! Inputs of the machines, and what follows from their outputs.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{World, body, name};
use crate::answer::{Answer, GetError};
use crate::catalog::{Content, Version};
use crate::proto::coordinator;
use crate::proto::limit::MAX_DELTA;
use crate::proto::replica;
use crate::proto::wire::{GetDelta, PublishedRev, Push};
use crate::proto::worker::{self, CallId, Event, Keep, Local, Output};
use crate::sim::model::packet::{Packet, To};
use crate::sim::model::scenario::Wish;
use crate::spec::SpecHash;

/// Inputs that one step may lead to at one node before it is called a loop.
const MAX_TURNS: usize = 64;

impl World {
    pub(super) fn arrive_up(&mut self, packet: Packet) -> Result<(), String> {
        let owner = format!("w{}", packet.worker());
        match packet {
            Packet::Watch { from, sid, stream } => {
                let site = Arc::make_mut(&mut self.site);
                site.streams.insert(stream, from);
                self.send(Packet::Watching(from));
                self.drive_site(coordinator::Input::Watch { sid, owner, stream })
            }
            Packet::Unwatch { sid, stream, .. } => {
                self.drive_site(coordinator::Input::Unwatch { sid, stream })
            }
            Packet::Renew { worker, renew } => self.drive_site(coordinator::Input::Renew {
                ticket: worker as u64,
                owner,
                renew,
            }),
            Packet::Ack { ack, .. } => self.drive_site(coordinator::Input::PrepAck { owner, ack }),
            Packet::Leave { sid, .. } => self.drive_site(coordinator::Input::Leave { owner, sid }),
            Packet::Resolve { from, request } => {
                let answer = match self.site.view.resolve(&request) {
                    Ok((opening, versions)) => Packet::Resolved(from, opening, versions),
                    Err(_) => Packet::Refused(from),
                };
                self.send(answer);
                Ok(())
            }
            Packet::GetDelta { from, request } => {
                let answer = self.delta(from, &request);
                self.send(answer);
                Ok(())
            }
            Packet::GetCatalog { from, request } => {
                let view = &self.site.view;
                let diff = replica::diff(&view.records, &view.head, &request.have);
                self.send(Packet::Catalog(from, Arc::new(diff)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn delta(&self, from: To, request: &GetDelta) -> Packet {
        let ledger = self.site.machine.ledger();
        match ledger.delta(request.epoch, request.from, MAX_DELTA) {
            Some(delta) => Packet::Delta(from, Arc::new(delta)),
            None => Packet::Refused(from),
        }
    }

    pub(super) fn arrive_down(&mut self, packet: Packet) -> Result<(), String> {
        let Some(to) = packet.call() else {
            return Ok(());
        };
        let events = match packet {
            Packet::Watching(_) => vec![Event::Watching],
            Packet::Push(_, push) => vec![match Push::clone(&push) {
                Push::Prepare(prepare) => Event::Prepare(prepare),
                Push::Release(delta) => Event::Release(delta),
            }],
            Packet::Resolved(_, opening, versions) => {
                let outcomes = versions.into_iter().map(|version| Event::Outcome {
                    version,
                    body: false,
                    ask: Vec::new(),
                });
                [Event::Opening(opening)]
                    .into_iter()
                    .chain(outcomes)
                    .chain([Event::End])
                    .collect()
            }
            Packet::Delta(_, delta) => vec![Event::Delta(delta.as_ref().clone())],
            Packet::Catalog(_, diff) => vec![Event::Catalog(diff.as_ref().clone())],
            Packet::Refused(_) => vec![Event::Failed {
                reason: "refused".into(),
                unreachable: false,
            }],
            _ => vec![Event::Lost {
                reason: "lost".into(),
            }],
        };
        let place = Arc::make_mut(&mut self.places[to.worker]);
        let goes_on = matches!(
            events.first(),
            Some(Event::Watching | Event::Prepare(_) | Event::Release(_))
        );
        if !goes_on {
            place.live.remove(&to.call.raw());
            place.streams.remove(&to.call);
        }
        for event in events {
            let call = to.call;
            self.drive_place(to.worker, worker::Input::Event { call, event })?;
        }
        Ok(())
    }

    pub(super) fn drive_site(&mut self, input: coordinator::Input) -> Result<(), String> {
        let now = self.now;
        let outputs = Arc::make_mut(&mut self.site).machine.handle(input, now);
        for output in outputs {
            self.site_says(output)?;
        }
        if self.site.writing.is_none() {
            let visible = self.site.view.records.rev();
            self.judge.idle(visible, now)?;
        }
        Ok(())
    }

    fn site_says(&mut self, output: coordinator::Output) -> Result<(), String> {
        match output {
            coordinator::Output::Write(entries) => {
                Arc::make_mut(&mut self.site).writing = Some(entries);
            }
            coordinator::Output::EndStream(stream) => {
                Arc::make_mut(&mut self.site).streams.remove(&stream);
            }
            coordinator::Output::Reveal(view) => Arc::make_mut(&mut self.site).view = view,
            coordinator::Output::Push { streams, push } => {
                for stream in streams {
                    if let Some(to) = self.site.streams.get(&stream).copied() {
                        self.send(Packet::Push(to, Arc::clone(&push)));
                    }
                }
            }
            coordinator::Output::Granted { ticket, result } => {
                if let Ok(grant) = result {
                    self.send(Packet::Granted(ticket as usize, Arc::new(grant)));
                }
            }
            coordinator::Output::Reply { ticket, result } => {
                if let Ok(published) = result {
                    self.acknowledged(ticket, &published)?;
                }
            }
            coordinator::Output::Checkpoint { .. } | coordinator::Output::PinReply { .. } => {}
        }
        Ok(())
    }

    fn acknowledged(&mut self, ticket: u64, published: &PublishedRev) -> Result<(), String> {
        let scenario = Arc::clone(&self.scenario);
        let (names, wishes) = match scenario.publishes.get(ticket as usize) {
            Some(wishes) => (
                wishes.iter().map(|wish| wish.name).collect(),
                wishes.as_slice(),
            ),
            None => {
                let names = 0..scenario.names - scenario.absent;
                (names.collect::<Vec<_>>(), &[][..])
            }
        };
        let records = &self.site.view.records;
        for name_index in names {
            let versions = records.versions(&name(name_index));
            let Some(version) = versions
                .iter()
                .rfind(|version| version.rev <= published.rev)
                .copied()
            else {
                return Err("S2: a publish was acknowledged before it was visible".into());
            };
            let now = scenario.bound.map(|_| self.now);
            self.judge
                .acknowledge(name_index, version, published.epoch, now)?;
        }
        for Wish {
            name: index,
            expect,
            ..
        } in wishes
        {
            let Some(expect) = *expect else { continue };
            let versions = records.versions(&name(*index));
            let before = versions.iter().rfind(|version| version.rev < published.rev);
            let before = before.map_or(0, |version| version.rev.get());
            if before != expect {
                return Err(format!(
                    "S2: a publish that expected revision {expect} was acknowledged over revision {before}"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn drive_place(
        &mut self,
        worker: usize,
        input: worker::Input,
    ) -> Result<(), String> {
        let now = self.places[worker].clock(self.now);
        let mut inputs = VecDeque::from([input]);
        for _ in 0..MAX_TURNS {
            let Some(input) = inputs.pop_front() else {
                return self.believes(worker);
            };
            let place = Arc::make_mut(&mut self.places[worker]);
            for output in place.machine.handle(input, now) {
                self.place_says(worker, output, &mut inputs)?;
            }
            if inputs.is_empty() {
                let place = &self.places[worker];
                let due = place.machine.next_wake().is_some_and(|at| at <= now);
                if due && place.asleep.is_none() {
                    inputs.push_back(worker::Input::Wake);
                }
            }
        }
        Err("a worker goes round in circles".into())
    }

    /// An honest coordinator is believed.
    fn believes(&self, worker: usize) -> Result<(), String> {
        match self.places[worker].machine.rollback() {
            Some((known, got)) if !self.judge.is_rolled_back() => Err(format!(
                "worker {worker} calls an honest coordinator a liar: {got} after {known}"
            )),
            _ => Ok(()),
        }
    }

    fn place_says(
        &mut self,
        worker: usize,
        output: Output,
        inputs: &mut VecDeque<worker::Input>,
    ) -> Result<(), String> {
        let place = Arc::make_mut(&mut self.places[worker]);
        match output {
            Output::Load(hash) => {
                let found = vec![(hash, self.find(hash))];
                inputs.push_back(worker::Input::Loaded { found });
            }
            Output::Show(sight) => place.sight = sight,
            Output::Remember(mark) => place.mark = Some(mark),
            Output::Anchor(anchor) => place.anchor = Some(anchor),
            Output::Keep(Keep::Whole(replica) | Keep::Steps { replica, .. }) => {
                place.kept = Some(replica);
            }
            Output::Watch { call, sid, .. } => {
                let stream = place.next_stream;
                place.next_stream += 16;
                place.live.insert(call.raw());
                place.streams.insert(call, stream);
                let from = place.to(call);
                self.send(Packet::Watch { from, sid, stream });
            }
            Output::Renew { call, request, .. } => {
                place.open_renewal(call, request.nonce);
                if place.renewals_left > 0 {
                    place.renewals_left = place.renewals_left.saturating_sub(1);
                    let renew = request;
                    self.send(Packet::Renew { worker, renew });
                }
            }
            Output::PrepAck { ack, .. } => self.send(Packet::Ack { worker, ack }),
            Output::Leave { sid, .. } => self.send(Packet::Leave { worker, sid }),
            Output::Resolve { call, request, .. } => {
                place.live.insert(call.raw());
                let (from, request) = (place.to(call), Arc::new(request));
                self.send(Packet::Resolve { from, request });
            }
            Output::GetDelta { call, request, .. } => {
                place.live.insert(call.raw());
                let from = place.to(call);
                self.send(Packet::GetDelta { from, request });
            }
            Output::GetCatalog { call, request, .. } => {
                place.live.insert(call.raw());
                let (from, request) = (place.to(call), Arc::new(request));
                self.send(Packet::GetCatalog { from, request });
            }
            // Nobody has a peer to go over here.
            Output::Brought { .. } | Output::OpenRelay { .. } => {}
            Output::Cancel(call) => self.cancelled(worker, call),
            Output::Done { ticket, result } => return self.done(ticket, result),
            Output::Misbehaved { what, .. } => {
                return Err(format!(
                    "worker {worker} calls an honest coordinator a liar: {what}"
                ));
            }
            Output::Save(_)
            | Output::Hold(_)
            | Output::ForgetHeld
            | Output::Fetch { .. }
            | Output::Give { .. }
            | Output::Use(_) => {}
        }
        Ok(())
    }

    /// Every body is on every disk: bytes are not what is searched.
    fn find(&self, hash: SpecHash) -> Local {
        let bodies = self.scenario.publishes.iter().flatten();
        let bodies = bodies.filter_map(|wish| wish.body).chain(["1"]);
        let found = bodies.map(body).find(|spec| spec.hash() == hash);
        found.map_or(Local::Missing, Local::Found)
    }

    fn cancelled(&mut self, worker: usize, call: CallId) {
        let place = Arc::make_mut(&mut self.places[worker]);
        place.live.remove(&call.raw());
        if let Some(stream) = place.streams.remove(&call) {
            let sid = place.sid;
            self.send(Packet::Unwatch {
                worker,
                sid,
                stream,
            });
        }
    }

    pub(super) fn done(
        &mut self,
        ticket: u64,
        result: Result<Answer, GetError>,
    ) -> Result<(), String> {
        let Ok(answer) = result else {
            self.judge.fail(ticket);
            return Ok(());
        };
        let proof = &answer.proof;
        let (Some(snapshot), rev) = (proof.snapshot, proof.record_rev.unwrap_or_default()) else {
            return Err("S3: a strict read was answered without a snapshot".into());
        };
        let content = match &answer.spec {
            Some(spec) => Content::Present {
                hash: spec.hash(),
                len: spec.len(),
            },
            None => Content::Deleted,
        };
        self.judge.end(ticket, Version { rev, content }, snapshot)
    }
}
