//! The snapshot of a run: which revision it takes, and keeping that readable.

use std::time::Duration;

use bytes::Bytes;

use super::Node;
use super::engine::unwritten;
use super::forward::confused;
use crate::answer::{Failure, GetError, RunToken};
use crate::api::pin_ms;
use crate::clock;
use crate::proto::wire::{Peering, Pin, Pinned, Request, Resolve, Response};
use crate::proto::worker::{Input, Mark};

/// How often a run looks whether the replica has reached its revision. The delta is one round
/// trip away, so this adds little to it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Node {
    /// The revision that a run may take: under a lease and with nothing about to change it is the
    /// replica's, and nobody is asked. Else the coordinator's, once the replica has reached it, so
    /// that the run's reads are answered here.
    pub(super) async fn newest_token(&self) -> Result<RunToken, Failure> {
        let token = self.find_newest_token().await?;
        match self.engine().is_unwritten() {
            true => Err(unwritten().into()),
            false => Ok(token),
        }
    }

    async fn find_newest_token(&self) -> Result<RunToken, Failure> {
        let leased = {
            let machine = self.engine().machine();
            machine.sight().run_token(clock::now())
        };
        if let Some(token) = leased {
            return Ok(token);
        }
        let asking = async {
            let token = self.ask_newest().await?;
            self.reach(token).await?;
            Ok(token)
        };
        match tokio::time::timeout(self.deadline(), asking).await {
            Ok(result) => result,
            Err(_) => {
                let message = "the deadline passed before this worker held the newest revision";
                Err(Failure::new("deadline", message).hint("`larder status` shows what it holds"))
            }
        }
    }

    /// The newest visible revision, from the coordinator. What it says of itself is judged like
    /// the answer to a read.
    async fn ask_newest(&self) -> Result<RunToken, Failure> {
        let (before, sent) = {
            let machine = self.engine().machine();
            (machine.mark(), clock::now())
        };
        let request = Request::Resolve(Resolve {
            at: None,
            names: Vec::new(),
            peering: Peering::Alone,
        });
        let Response::Resolved(opening) = self.forward(request, Bytes::new()).await? else {
            return Err(confused());
        };
        if let Some(mark) = before
            && mark.catalog != opening.catalog
        {
            let (known, got, hops) = (mark.catalog, opening.catalog, Vec::new());
            return Err(GetError::WrongCatalog { known, got, hops }.into());
        }
        let state = Mark {
            catalog: opening.catalog,
            epoch: opening.epoch,
            rev: opening.rev,
        };
        self.engine().drive(Input::Named {
            state,
            before,
            sent,
        });
        if let Some((known, got)) = self.engine().machine().rollback() {
            return Err(GetError::Quarantined { known, got }.into());
        }
        Ok(RunToken {
            catalog: state.catalog,
            epoch: state.epoch,
            rev: state.rev,
        })
    }

    /// Waits for the replica, where there is one.
    async fn reach(&self, token: RunToken) -> Result<(), GetError> {
        loop {
            {
                let machine = self.engine().machine();
                if !machine.keeps_replica() {
                    return Ok(());
                }
                if let Some(replica) = machine.sight().replica()
                    && (replica.epoch(), replica.rev()) >= (token.epoch, token.rev)
                {
                    return token.check(replica.head().catalog, replica.epoch());
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A pin on the wire names no catalog, so the token is compared with what answers here.
    pub(super) async fn pin_token(
        &self,
        token: RunToken,
        keep: Duration,
    ) -> Result<Pinned, Failure> {
        let for_ms = pin_ms(keep)?;
        let known = self.engine().machine().mark();
        let catalog = match known {
            Some(mark) => mark.catalog,
            None => self.ask_newest().await?.catalog,
        };
        if catalog != token.catalog {
            return Err(GetError::OtherCatalog { token, catalog }.into());
        }
        let request = Request::Pin(Pin {
            epoch: token.epoch,
            rev: token.rev,
            for_ms,
        });
        match self.forward(request, Bytes::new()).await? {
            Response::Pinned(pinned) => Ok(pinned),
            _ => Err(confused()),
        }
    }
}
