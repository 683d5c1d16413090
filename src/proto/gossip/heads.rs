//! The heads that are spread, and the proof that somebody signed two for one revision.
//!
//! ```text
//! item := 1 | head: 176                     the newest head that someone knows
//!       | 2 | head: 176 | head: 176         two different heads of one catalog and revision
//! ```

use std::collections::BTreeMap;

use foca::{BroadcastHandler, Invalidates};

use crate::catalog::{CatalogId, Epoch, HeadVerifier, Revision, SignedHead, VerifiedHead};
use crate::codec::{DecodeError, Reader, Writer};
use crate::proto::limit::{MAX_GOSSIPED_CATALOGS, MAX_KEPT_HEADS};

/// Two heads that one key signed for one revision.
pub type Pair = (SignedHead, SignedHead);

type Rank = (Epoch, Revision);

/// What may be spread. Nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Head(SignedHead),
    Equivocation(Box<Pair>),
}

impl Item {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let tag = r.u8()?;
        let mut head = || SignedHead::from_slice(r.raw(SignedHead::LEN)?);
        let item = match tag {
            1 => Self::Head(head()?),
            2 => Self::Equivocation(Box::new((head()?, head()?))),
            other => return Err(DecodeError::Tag(other)),
        };
        r.end()?;
        Ok(item)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Head(head) => w.u8(1).raw(head.as_bytes()),
            Self::Equivocation(pair) => w.u8(2).raw(pair.0.as_bytes()).raw(pair.1.as_bytes()),
        };
        w.finish()
    }

    fn key(&self) -> Result<ItemKey, DecodeError> {
        let (proof, head) = match self {
            Self::Head(head) => (false, head),
            Self::Equivocation(pair) => (true, &pair.0),
        };
        let head = head.claimed()?;
        Ok(ItemKey {
            proof,
            catalog: head.catalog,
            rank: (head.epoch, head.rev),
        })
    }
}

/// Which item makes which other one worthless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ItemKey {
    proof: bool,
    catalog: CatalogId,
    rank: Rank,
}

impl Invalidates for ItemKey {
    fn invalidates(&self, other: &Self) -> bool {
        let alike = self.proof == other.proof && self.catalog == other.catalog;
        alike && self.rank >= other.rank
    }
}

/// Takes what the machine has verified; foca itself is never shown foreign items.
#[derive(Debug)]
pub(super) struct Items;

impl BroadcastHandler<super::Member> for Items {
    type Key = ItemKey;
    type Error = DecodeError;

    fn receive_item(
        &mut self,
        data: &[u8],
        _sender: Option<&super::Member>,
    ) -> Result<Option<ItemKey>, DecodeError> {
        Item::read(data)?.key().map(Some)
    }
}

/// What an item was worth.
#[derive(Debug)]
pub(super) enum Taken {
    /// Known, or older than what is known.
    Nothing,
    /// No head, or one that no pinned key signed, or of one catalog too many.
    Refused,
    /// Newer than all before it, and signed.
    New(Box<VerifiedHead>),
    /// The first proof for its catalog.
    Equivocation(Box<Pair>),
}

/// The newest heads of each catalog.
#[derive(Debug, Default)]
pub(super) struct Heads(BTreeMap<CatalogId, Known>);

#[derive(Debug, Default)]
struct Known {
    /// The last few, to compare a second one with.
    heads: BTreeMap<Rank, VerifiedHead>,
    proof: Option<Box<Pair>>,
}

impl Heads {
    /// Cheap checks first: most of what comes is known already.
    pub(super) fn take(&mut self, item: &[u8], verifier: &dyn HeadVerifier) -> Taken {
        match Item::read(item) {
            Ok(Item::Head(head)) => self.take_head(&head, verifier),
            Ok(Item::Equivocation(pair)) => self.take_proof(pair, verifier),
            Err(_) => Taken::Refused,
        }
    }

    fn take_head(&mut self, signed: &SignedHead, verifier: &dyn HeadVerifier) -> Taken {
        let Ok(claimed) = signed.claimed() else {
            return Taken::Refused;
        };
        let rank = (claimed.epoch, claimed.rev);
        let known = self.0.get(&claimed.catalog);
        let same = known.and_then(|known| known.heads.get(&rank));
        match same {
            Some(same) if *same.head() == claimed => return Taken::Nothing,
            Some(_) => {}
            None => {
                let newest = known.and_then(|known| known.heads.last_key_value());
                if newest.is_some_and(|(newest, _)| *newest > rank) {
                    return Taken::Nothing;
                }
            }
        }
        match signed.verify(verifier) {
            Ok(head) => self.take_verified(head),
            Err(_) => Taken::Refused,
        }
    }

    /// One that was verified before.
    pub(super) fn take_verified(&mut self, head: VerifiedHead) -> Taken {
        let catalog = head.head().catalog;
        if !self.0.contains_key(&catalog) && self.0.len() >= MAX_GOSSIPED_CATALOGS {
            return Taken::Refused;
        }
        let rank = (head.head().epoch, head.head().rev);
        let known = self.0.entry(catalog).or_default();
        if let Some(same) = known.heads.get(&rank) {
            if same.head() == head.head() {
                return Taken::Nothing;
            }
            let pair = Box::new((*same.signed(), *head.signed()));
            return known.prove(pair);
        }
        let newest = known.heads.last_key_value();
        if newest.is_some_and(|(newest, _)| *newest > rank) {
            return Taken::Nothing;
        }
        known.heads.insert(rank, head);
        while known.heads.len() > MAX_KEPT_HEADS {
            known.heads.pop_first();
        }
        Taken::New(Box::new(head))
    }

    fn take_proof(&mut self, pair: Box<Pair>, verifier: &dyn HeadVerifier) -> Taken {
        let (Ok(a), Ok(b)) = (pair.0.claimed(), pair.1.claimed()) else {
            return Taken::Refused;
        };
        let one_place = (a.catalog, a.epoch, a.rev) == (b.catalog, b.epoch, b.rev);
        if a == b || !one_place {
            return Taken::Refused;
        }
        let proven = |known: &Known| known.proof.is_some();
        if self.0.get(&a.catalog).is_some_and(proven) {
            return Taken::Nothing;
        }
        if pair.0.verify(verifier).is_err() || pair.1.verify(verifier).is_err() {
            return Taken::Refused;
        }
        if !self.0.contains_key(&a.catalog) && self.0.len() >= MAX_GOSSIPED_CATALOGS {
            return Taken::Refused;
        }
        self.0.entry(a.catalog).or_default().prove(pair)
    }

    /// All that is worth telling someone who may know nothing.
    pub(super) fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        for known in self.0.values() {
            if let Some((_, head)) = known.heads.last_key_value() {
                items.push(Item::Head(*head.signed()));
            }
            items.extend(known.proof.clone().map(Item::Equivocation));
        }
        items
    }

    /// Whether something here is newer than all of `told`, or is missing there.
    pub(super) fn know_more_than(&self, told: &[&[u8]]) -> bool {
        let told: Vec<Item> = told
            .iter()
            .filter_map(|item| Item::read(item).ok())
            .collect();
        let keys: Vec<ItemKey> = told.iter().filter_map(|item| item.key().ok()).collect();
        let mut ours = self.items().into_iter().filter_map(|item| item.key().ok());
        ours.any(|our| !keys.iter().any(|key| key.invalidates(&our)))
    }
}

impl Known {
    fn prove(&mut self, pair: Box<Pair>) -> Taken {
        if self.proof.is_some() {
            return Taken::Nothing;
        }
        self.proof = Some(pair.clone());
        Taken::Equivocation(pair)
    }
}
