//! How much a worker gives to others.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::identity::NodeId;
use crate::proto::Time;
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{MAX_UPLOADERS, MAX_UPLOADS_PER_NODE};

/// A limit on the bytes that go out, for all together, and on the questions of each node.
#[derive(Debug)]
pub struct Uploads {
    /// Bytes per second; `None`: as many as are asked for.
    limit: Option<u64>,
    /// Up to when what was given is paid for, at that pace: a body is given whole, so the last one
    /// may be longer than what was left.
    paid_until: Time,
    /// Questions that have not been answered.
    at_once: BTreeMap<NodeId, usize>,
}

/// So much time's worth of bytes may go out at once after a pause.
const BURST: Duration = Duration::from_secs(1);

impl Uploads {
    /// At most `limit` bytes per second; 0: nothing at all.
    pub fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            paid_until: Time::default(),
            at_once: BTreeMap::new(),
        }
    }

    /// A question comes; [`end`](Self::end) follows.
    ///
    /// # Errors
    /// [`Code::NotFound`] where nothing is given, [`Code::Busy`] if the node asks too much at once.
    pub fn begin(&mut self, node: NodeId) -> Result<(), Refusal> {
        if self.limit == Some(0) {
            let message = "this worker gives no bytes to others";
            return Err(Refusal::new(Code::NotFound, message));
        }
        let nodes = self.at_once.len();
        let at_once = self.at_once.get(&node).copied().unwrap_or_default();
        if at_once >= MAX_UPLOADS_PER_NODE || (at_once == 0 && nodes >= MAX_UPLOADERS) {
            let message = "this worker gives as much as it may at once";
            return Err(Refusal::new(Code::Busy, message));
        }
        self.at_once.insert(node, at_once + 1);
        Ok(())
    }

    /// A question that had [begun](Self::begin) is over.
    pub fn end(&mut self, node: NodeId) {
        if let Some(at_once) = self.at_once.get_mut(&node) {
            *at_once -= 1;
            if *at_once == 0 {
                self.at_once.remove(&node);
            }
        }
    }

    /// A body of `len` bytes is about to go out.
    ///
    /// # Errors
    /// [`Code::Busy`] if too much has gone out lately.
    pub fn take(&mut self, len: u64, now: Time) -> Result<(), Refusal> {
        let Some(limit) = self.limit.filter(|&limit| limit > 0) else {
            return Ok(());
        };
        if self.paid_until.since(now) >= BURST {
            let message = "this worker gives no more bytes per second to others";
            return Err(Refusal::new(Code::Busy, message));
        }
        let micros = u128::from(len) * 1_000_000 / u128::from(limit);
        let costs = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.paid_until = self.paid_until.max(now) + costs;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_micros(5_000_000);

    fn code(result: Result<(), Refusal>) -> Option<Code> {
        result.err().map(|refusal| refusal.code)
    }

    #[test]
    fn no_more_bytes_go_out_than_the_limit_says() {
        let mut uploads = Uploads::new(Some(1_000));
        let (mut given, mut now) = (0, NOW);
        for _ in 0..10_000 {
            if uploads.take(300, now).is_ok() {
                given += 300;
            }
            now = now + Duration::from_millis(1);
        }
        // Ten seconds, the burst, and the body that goes beyond it.
        assert!((10_000..=11_300).contains(&given), "{given}");
        let now = now + BURST * 3;
        assert_eq!(code(uploads.take(1, now)), None);
        assert_eq!(code(uploads.take(9_000, now)), None, "given whole");
        let later = now + Duration::from_secs(8);
        assert_eq!(
            code(uploads.take(1, later)),
            Some(Code::Busy),
            "and paid for"
        );
        assert_eq!(code(uploads.take(1, later + BURST * 2)), None);
    }

    #[test]
    fn without_a_limit_all_is_given_and_with_none_nothing() {
        let node = NodeId::of_addr("a");
        let mut all = Uploads::new(None);
        for _ in 0..100 {
            assert_eq!(code(all.take(u64::MAX, NOW)), None);
        }
        assert_eq!(code(all.begin(node)), None);
        assert_eq!(
            code(Uploads::new(Some(0)).begin(node)),
            Some(Code::NotFound)
        );
    }

    #[test]
    fn one_node_does_not_take_what_is_for_all() {
        let mut uploads = Uploads::new(None);
        let node = |n: usize| NodeId::of_addr(&n.to_string());
        for _ in 0..MAX_UPLOADS_PER_NODE {
            assert_eq!(code(uploads.begin(node(0))), None);
        }
        assert_eq!(code(uploads.begin(node(0))), Some(Code::Busy));
        assert_eq!(code(uploads.begin(node(1))), None);
        uploads.end(node(0));
        assert_eq!(code(uploads.begin(node(0))), None);
        for n in 2..MAX_UPLOADERS {
            assert_eq!(code(uploads.begin(node(n))), None);
        }
        assert_eq!(code(uploads.begin(node(MAX_UPLOADERS))), Some(Code::Busy));
        uploads.end(node(1));
        assert_eq!(code(uploads.begin(node(MAX_UPLOADERS))), None);
    }
}
