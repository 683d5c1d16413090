//! Carries a scenario out, on the boot clock.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::net::Net;
use crate::now;
use crate::scenario::{Action, Event, Scenario};

/// Plays all of a scenario, or until `stop` says something or is dropped. `tell` hears of each
/// change once it holds. Returns whether it came to its end.
pub fn play(
    net: &Net,
    scenario: &Scenario,
    stop: &Receiver<()>,
    mut tell: impl FnMut(&Event),
) -> bool {
    let began = now();
    for event in scenario.events() {
        if !wait(began + event.at, stop) {
            return false;
        }
        apply(net, event);
        tell(event);
    }
    wait(began + scenario.lasts(), stop)
}

fn apply(net: &Net, event: &Event) {
    let Event {
        from, to, action, ..
    } = event;
    match action {
        Action::Cut => net.cut(*from, *to),
        Action::Heal => net.heal(*from, *to),
        Action::Reset => net.reset(*from, *to),
        Action::Set(change) => net.change(*from, *to, |rule| change.apply(rule)),
    }
}

/// Whether the time came before a stop. The boot clock is asked again after each wait, since
/// waits are on another.
fn wait(until: Duration, stop: &Receiver<()>) -> bool {
    loop {
        let left = until.saturating_sub(now());
        if left.is_zero() {
            return true;
        }
        match stop.recv_timeout(left) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}
