//! Before a worker takes part in the membership, and when it does so anew.
//!
//! It has to know where it is reached. Then the reads come first that it was started for: many that
//! start at once would do handshakes with each other instead.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::Time;
use crate::proto::limit::{FIRST_ASK, MAX_ASK, MAX_DIAL_FIRST, MAX_READS_FIRST};

/// When to begin, and where.
#[derive(Debug, Default)]
pub struct Beginning {
    /// Where this node is reached, as far as it knows.
    addr: Option<SocketAddr>,
    /// Since when it knows where.
    since: Option<Time>,
    has_begun: bool,
}

/// What keeps a worker from looking for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    /// Reads wait for an answer of others, or others take bytes from this worker.
    pub is_reading: bool,
    /// A coordinator is connected.
    pub has_coordinator: bool,
}

impl Beginning {
    /// It was found out where this node is reached. If it has [moved](Self::moved) meanwhile, that
    /// counts more.
    pub fn located(&mut self, addr: SocketAddr, now: Time) {
        self.addr.get_or_insert(addr);
        self.since.get_or_insert(now);
    }

    /// This node is reached somewhere else. Gives the address to begin anew under, if it takes part
    /// already: the others know it by the one before.
    pub fn moved(&mut self, addr: SocketAddr, now: Time) -> Option<SocketAddr> {
        self.since.get_or_insert(now);
        let before = self.addr.replace(addr);
        (self.has_begun && before != Some(addr)).then_some(addr)
    }

    /// The address to begin under, once: when nothing is read any more, and [`MAX_READS_FIRST`] or
    /// [`MAX_DIAL_FIRST`] after it was known in any case.
    pub fn look(&mut self, busy: Busy, now: Time) -> Option<SocketAddr> {
        let (addr, since) = (self.addr?, self.since?);
        // Without the coordinator it is the others that reads wait for.
        let patience = match busy.has_coordinator {
            true => MAX_READS_FIRST,
            false => MAX_DIAL_FIRST,
        };
        if self.has_begun || (busy.is_reading && now.since(since) < patience) {
            return None;
        }
        self.has_begun = true;
        Some(addr)
    }

    /// Whether it takes part.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }
}

/// How long to wait until seeds that did not answer are asked again where this node is reached.
#[derive(Debug)]
pub struct AskPause(Duration);

impl Default for AskPause {
    fn default() -> Self {
        Self(FIRST_ASK)
    }
}

impl AskPause {
    /// The next one.
    pub fn next_pause(&mut self) -> Duration {
        let doubled = (self.0 * 2).min(MAX_ASK);
        std::mem::replace(&mut self.0, doubled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Busy = Busy {
        is_reading: true,
        has_coordinator: true,
    };
    const IDLE: Busy = Busy {
        is_reading: false,
        has_coordinator: true,
    };

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 1))
    }

    fn located() -> (Beginning, Time) {
        let (mut beginning, now) = (Beginning::default(), Time::from_micros(7));
        beginning.located(addr(1), now);
        (beginning, now)
    }

    #[test]
    fn it_begins_once_when_nothing_is_read() {
        let (mut beginning, now) = located();
        assert_eq!(beginning.look(READING, now), None);
        assert_eq!(beginning.look(IDLE, now), Some(addr(1)));
        assert!(beginning.has_begun());
        assert_eq!(beginning.look(IDLE, now), None);
    }

    #[test]
    fn reads_are_waited_for_until_patience_ends() {
        let alone = Busy {
            has_coordinator: false,
            ..READING
        };
        for (busy, patience) in [(READING, MAX_READS_FIRST), (alone, MAX_DIAL_FIRST)] {
            let (mut beginning, now) = located();
            let just_before = now + (patience - Duration::from_micros(1));
            assert_eq!(beginning.look(busy, just_before), None);
            assert_eq!(beginning.look(busy, now + patience), Some(addr(1)));
        }
    }

    #[test]
    fn nobody_begins_without_an_address() {
        let mut beginning = Beginning::default();
        assert_eq!(
            beginning.look(IDLE, Time::default() + MAX_READS_FIRST),
            None
        );
        assert!(!beginning.has_begun());
    }

    #[test]
    fn a_node_that_moves_before_it_begins_begins_at_the_new_address() {
        let (mut beginning, now) = located();
        assert_eq!(beginning.moved(addr(2), now), None);
        // What was asked before the move is answered after it.
        beginning.located(addr(1), now);
        assert_eq!(beginning.look(IDLE, now), Some(addr(2)));
    }

    #[test]
    fn a_node_that_moves_later_begins_anew_if_it_is_reached_elsewhere() {
        let (mut beginning, now) = located();
        beginning.look(IDLE, now);
        assert_eq!(beginning.moved(addr(1), now), None, "it is where it was");
        assert_eq!(beginning.moved(addr(2), now), Some(addr(2)));
        assert_eq!(beginning.moved(addr(2), now), None);
        assert_eq!(beginning.moved(addr(1), now), Some(addr(1)));
    }

    #[test]
    fn pauses_double_up_to_their_bound() {
        let mut pause = AskPause::default();
        assert_eq!(pause.next_pause(), FIRST_ASK);
        assert_eq!(pause.next_pause(), FIRST_ASK * 2);
        let last = (0..20).map(|_| pause.next_pause()).last();
        assert_eq!(last, Some(MAX_ASK));
    }
}
