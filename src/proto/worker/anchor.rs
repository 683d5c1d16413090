//! Since when a replica may be out of date, also over a restart of its worker.

use super::Mark;
use crate::proto::Time;

/// The replica that has reached `state` reflects everything that was acknowledged before `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// When the request was sent whose answer named the state, on the boot clock.
    pub at: Time,
    /// What was named.
    pub state: Mark,
}

/// Names one start of the kernel: a boot clock counts from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootId([u8; 16]);

impl BootId {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// An anchor as an earlier process left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptAnchor {
    /// On whose clock its time is.
    pub boot: BootId,
    /// The anchor.
    pub anchor: Anchor,
}

impl KeptAnchor {
    /// The anchor, if its time means something at `now` of the boot `boot`: a clock that began
    /// anew says nothing about an earlier one, and no request was sent in the future.
    pub fn still_holds(self, boot: Option<BootId>, now: Time) -> Option<Anchor> {
        (boot == Some(self.boot) && self.anchor.at <= now).then_some(self.anchor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{CatalogId, Epoch, Revision};

    #[test]
    fn an_anchor_of_another_boot_or_of_the_future_holds_no_more() {
        let [boot, other] = [1, 2].map(|id| BootId::from_bytes([id; 16]));
        let anchor = Anchor {
            at: Time::from_micros(50),
            state: Mark {
                catalog: CatalogId::from_bytes([1; 16]),
                epoch: Epoch::new(1),
                rev: Revision::new(1),
            },
        };
        let kept = KeptAnchor { boot, anchor };
        let at = |boot, now| kept.still_holds(boot, Time::from_micros(now));
        assert_eq!(at(Some(boot), 50), Some(anchor));
        assert_eq!(at(Some(boot), 1_000_000_000), Some(anchor));
        assert_eq!(at(Some(boot), 49), None, "the future");
        assert_eq!(at(Some(other), 50), None, "another boot");
        assert_eq!(at(None, 50), None, "nobody knows which boot this is");
    }
}
