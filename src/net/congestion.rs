//! Who decides how many bytes may be under way.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{
    BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig, NewRenoConfig,
};
use quinn_proto::RttEstimator;

/// How a node decides how fast it sends; the other side of a connection decides for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Congestion {
    /// As TCP usually does: a loss cuts what may be under way by a third.
    Cubic,
    /// The same by half, growing more slowly.
    NewReno,
    /// By the bandwidth that was seen; a loss alone says nothing. It is quinn's, which calls it
    /// experimental, between bounds of our own.
    #[default]
    Bbr,
}

impl Congestion {
    pub(super) fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::NewReno => Arc::new(NewRenoConfig::default()),
            Self::Bbr => Arc::new(BoundedBbr),
        }
    }
}

/// What may be under way before anything is known of a path, sent within a round trip: quinn's
/// own number for BBR, and about 58 definitions of a usual length.
const FIRST_WINDOW: u64 = 240_000;

/// What may be under way at most. While requests are small quinn's BBR grows without an end, and
/// would send the first large body all at once.
const MAX_WINDOW: u64 = 4 << 20;

/// A loss is held to say something about the path for so long.
const LOSS_COUNTS: Duration = Duration::from_secs(10);

struct BoundedBbr;

impl ControllerFactory for BoundedBbr {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let mut config = BbrConfig::default();
        config.initial_window(FIRST_WINDOW);
        let inner = Arc::new(config).build(now, current_mtu);
        Box::new(Bounded { inner, lost: None })
    }
}

/// A controller between two bounds.
///
/// quinn's BBR takes the pace of small requests for what the path carries, and holds the first
/// burst that follows to it for 200 ms or more, since it looks for the shortest round trip then.
/// So as long as nothing is lost, [`FIRST_WINDOW`] may be under way. Where a path loses packets,
/// BBR alone decides: it may be full.
struct Bounded {
    inner: Box<dyn Controller>,
    /// When a packet was last lost, if that still counts.
    lost: Option<Instant>,
}

impl Controller for Bounded {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        let counts = |lost: &Instant| now.saturating_duration_since(*lost) < LOSS_COUNTS;
        self.lost = self.lost.filter(counts);
        let largest = largest_packet_num_acked;
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.lost = Some(now);
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let least = match self.lost {
            None => FIRST_WINDOW,
            Some(_) => 0,
        };
        self.inner.window().clamp(least, MAX_WINDOW)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            lost: self.lost,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A controller with a window that the test decides.
    struct Fixed(u64);

    impl Controller for Fixed {
        fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}

        fn on_mtu_update(&mut self, _: u16) {}

        fn window(&self) -> u64 {
            self.0
        }

        fn clone_box(&self) -> Box<dyn Controller> {
            Box::new(Self(self.0))
        }

        fn initial_window(&self) -> u64 {
            self.0
        }

        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    fn bounded(window: u64) -> Bounded {
        Bounded {
            inner: Box::new(Fixed(window)),
            lost: None,
        }
    }

    #[test]
    fn a_window_has_an_upper_bound_whatever_the_controller_says() {
        let now = Instant::now();
        let mut endless = bounded(u64::MAX);
        assert_eq!(endless.window(), MAX_WINDOW);
        endless.on_congestion_event(now, now, false, 1_200);
        assert_eq!(endless.window(), MAX_WINDOW);
        assert_eq!(endless.clone_box().window(), MAX_WINDOW);
    }

    #[test]
    fn a_small_window_counts_only_for_a_while_after_a_loss() {
        let now = Instant::now();
        let mut small = bounded(5_000);
        assert_eq!(small.window(), FIRST_WINDOW);
        small.on_congestion_event(now, now, false, 1_200);
        assert_eq!(small.window(), 5_000);
        assert_eq!(small.clone_box().window(), 5_000);
        small.on_end_acks(now + LOSS_COUNTS / 2, 0, false, Some(1));
        assert_eq!(small.window(), 5_000);
        small.on_end_acks(now + LOSS_COUNTS, 0, false, Some(2));
        assert_eq!(small.window(), FIRST_WINDOW);
    }

    #[test]
    fn a_connection_begins_with_the_first_window() {
        let now = Instant::now();
        let bbr = Congestion::Bbr.factory().build(now, 1_200);
        assert_eq!(bbr.window(), FIRST_WINDOW);
        assert_eq!(bbr.initial_window(), FIRST_WINDOW);
    }
}
