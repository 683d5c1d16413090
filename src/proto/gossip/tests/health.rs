//! What a node does that is woken late.

use super::*;
use crate::proto::limit::{LATE_WAKE, MAX_STRETCH};

const LATE: Duration = Duration::from_millis(2 * LATE_WAKE.as_millis() as u64);

fn found() -> Net {
    let mut net = Net::new(6);
    net.run(Duration::from_secs(70));
    net
}

/// How many probes the first node sends within `time`.
fn probes(net: &mut Net, time: Duration) -> u64 {
    let before = net.probes;
    net.run(time);
    net.probes - before
}

#[test]
fn a_node_that_is_woken_late_probes_less_often_until_it_is_woken_in_time() {
    let (minutes, recovery) = (Duration::from_secs(320), Duration::from_secs(120));
    let mut net = found();
    let before = probes(&mut net, minutes);
    assert_eq!(net.nodes[0].stretch(), 1);

    net.late = LATE;
    let during = probes(&mut net, minutes);
    assert_eq!(net.nodes[0].stretch(), MAX_STRETCH);
    assert!(during > 0);
    assert!(during * 4 < before, "{during}, and {before} before");

    net.late = Duration::ZERO;
    net.run(recovery);
    assert_eq!(net.nodes[0].stretch(), 1);
    assert_eq!(probes(&mut net, minutes), before);
    assert!((1..6).all(|n| net.sees(n, 0) == Some(1)), "nobody minded");
}

#[test]
fn a_node_that_is_hardly_late_does_what_it_always_does() {
    let log = |late| {
        let mut net = found();
        net.late = late;
        probes(&mut net, Duration::from_secs(320))
    };
    // It is late by as much itself.
    let (before, during) = (log(Duration::ZERO), log(LATE_WAKE / 2));
    assert!(during * 10 > before * 9, "{during}, and {before} in time");
}

#[test]
fn a_node_that_is_woken_late_holds_a_dead_one_for_alive_for_longer() {
    let gone_after = |late| {
        let mut net = Net::new(2);
        net.run(Duration::from_secs(70));
        net.late = late;
        net.run(Duration::from_secs(70));
        net.dead.insert(1);
        let seconds = (0..200).take_while(|_| {
            net.run(Duration::from_secs(1));
            net.sees(0, 1).is_some()
        });
        seconds.count()
    };
    let (soon, later) = (gone_after(Duration::ZERO), gone_after(LATE));
    assert!(soon * 2 < later, "{soon} s and {later} s");
    assert!(later < 200, "but not for ever");
}

#[test]
fn a_node_that_was_woken_late_doubts_itself_until_somebody_answers_or_nobody_is_left() {
    let stretches = |are_dead: bool| {
        let mut net = found();
        for n in 1..6 {
            let (node, addr) = (id(n), addr(n));
            net.input(0, Input::Connected { node, addr });
        }
        net.late = LATE;
        net.run(Duration::from_secs(70));
        net.late = Duration::ZERO;
        if are_dead {
            net.dead.extend(1..6);
        }
        net.run(Duration::from_secs(45));
        let soon = net.nodes[0].stretch();
        net.run(Duration::from_secs(600));
        assert_eq!(net.nodes[0].members().count() == 0, are_dead);
        (soon, net.nodes[0].stretch())
    };
    let ((answered, at_last), (unanswered, alone)) = (stretches(false), stretches(true));
    assert!(answered <= 4, "{answered}");
    assert_eq!(unanswered, MAX_STRETCH);
    assert_eq!((at_last, alone), (1, 1));
}

#[test]
fn what_a_node_that_is_woken_late_has_to_say_is_not_held_up() {
    let mut net = found();
    net.late = LATE;
    net.run(Duration::from_secs(70));
    assert_eq!(net.nodes[0].stretch(), MAX_STRETCH);
    let news = Update::alive(Member::new(id(7), addr(7), 3));
    let (from, bytes) = (id(1), net.lie(1, 0, news));
    let bytes = &bytes;
    net.nodes[0].handle(Input::Datagram { from, bytes }, net.now);
    let end = net.now + Duration::from_secs(4);
    let mut told = 0;
    while let Some(at) = net.wake_of(0).filter(|at| *at <= end) {
        let out = net.nodes[0].handle(Input::Tick, at);
        told += out.iter().filter(|output| is_news(output)).count();
    }
    assert!(told > 4, "{told} packets in four rounds");
}

fn is_news(output: &Output) -> bool {
    let Output::Send { bytes, .. } = output else {
        return false;
    };
    matches!(message(bytes), Some(Message::Gossip))
}
