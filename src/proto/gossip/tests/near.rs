//! Whom a node talks to of its own accord.

use super::*;
use crate::proto::limit::{ENOUGH_NEIGHBOURS, FIRST_SYNC, HEAD_FANOUT};

/// What a node says of its own accord within `time`: to whom, and what kind of packet it is. Nobody
/// answers.
fn says(net: &mut Net, n: usize, time: Duration) -> Vec<(Member, Message<Member>)> {
    let end = net.now + time;
    let mut said = Vec::new();
    while let Some(at) = net.nodes[n].next_wake().filter(|at| *at <= end) {
        net.now = net.now.max(at);
        for output in net.nodes[n].handle(Input::Tick, net.now) {
            let Output::Send { to, bytes } = output else {
                continue;
            };
            if let Some((&MEMBERSHIP, packet)) = bytes.split_first() {
                let header = Packet::read(packet).expect("our own packet").header;
                assert_eq!(header.dst, to, "it is addressed to whom it goes");
                said.push((to, header.message));
            }
        }
    }
    net.now = end;
    said
}

/// A cluster whose first node has something new to say, and is connected with some of the others.
fn connected_with(near: std::ops::Range<usize>) -> Net {
    let mut net = Net::new(12);
    net.run(Duration::from_secs(70));
    for n in near {
        let (node, addr) = (id(n), addr(n));
        net.input(0, Input::Connected { node, addr });
    }
    let gone = Update::down(net.nodes[11].own());
    let bytes = net.lie(10, 0, gone);
    net.told(10, 0, &bytes);
    net
}

#[test]
fn news_go_to_neighbours_once_they_are_enough_and_to_anyone_before() {
    let is_news = |message: &Message<Member>| matches!(message, Message::Gossip);
    let strangers = |near: std::ops::Range<usize>| {
        let mut net = connected_with(near.clone());
        let said = says(&mut net, 0, Duration::from_secs(4));
        let news = said.iter().filter(|(_, message)| is_news(message));
        let is_near = |to: &Member| near.clone().any(|n| id(n) == to.id);
        let (near, far): (Vec<_>, Vec<_>) = news.partition(|(to, _)| is_near(to));
        (near.len(), far.len())
    };
    let (near, far) = strangers(1..1 + ENOUGH_NEIGHBOURS);
    assert!(near > 0);
    assert_eq!(far, 0);
    let (_, far) = strangers(1..ENOUGH_NEIGHBOURS);
    assert!(far > 0, "too few to rely on");
}

#[test]
fn members_without_a_connection_are_probed_more_slowly() {
    let probes = |near| {
        let mut net = connected_with(near);
        let said = says(&mut net, 0, Duration::from_secs(5));
        let is_probe =
            |(_, message): &&(Member, Message<Member>)| matches!(message, Message::Ping(_));
        said.iter().filter(is_probe).count()
    };
    let (quick, slow) = (probes(1..12), probes(0..0));
    assert!(slow > 0);
    assert!(slow * 2 <= quick, "{slow} of {quick}");
}

/// Whom a node tells of heads at once.
fn hearers(outputs: &[Output]) -> BTreeSet<usize> {
    let heard = outputs.iter().filter_map(|output| match output {
        Output::Send { to, bytes } if bytes.first() == Some(&HEADS) => Some(to.id),
        _ => None,
    });
    let heard: Vec<NodeId> = heard.collect();
    let place = |node: &NodeId| (0..12).find(|n| id(*n) == *node).expect("a member");
    let places: BTreeSet<usize> = heard.iter().map(place).collect();
    assert_eq!(places.len(), heard.len(), "nobody is told twice");
    places
}

#[test]
fn a_head_goes_to_many_neighbours_at_once_but_not_to_whoever_told_it() {
    let mut net = connected_with(1..11);
    let (from, bytes) = (id(1), items(&[Item::Head(head(5, 0, &key()))]));
    let input = Input::Datagram {
        from,
        bytes: &bytes,
    };
    let heard = hearers(&net.nodes[0].handle(input, net.now));
    assert_eq!(heard.len(), HEAD_FANOUT);
    assert!(heard.iter().all(|n| (2..11).contains(n)), "{heard:?}");
    let own = Input::Head(Box::new(verified(6)));
    assert_eq!(
        hearers(&net.nodes[0].handle(own, net.now)).len(),
        HEAD_FANOUT
    );
}

#[test]
fn a_head_goes_to_anyone_while_neighbours_are_few() {
    let mut net = connected_with(1..ENOUGH_NEIGHBOURS);
    let head = Input::Head(Box::new(verified(5)));
    let heard = hearers(&net.nodes[0].handle(head, net.now));
    assert_eq!(heard.len(), HEAD_FANOUT);
}

/// How often a node compares lists within eight times the first pause, if each list that it gets
/// has so many members that are new to it.
fn comparisons(new: usize) -> usize {
    let mut net = Net::new(2);
    let end = net.now + FIRST_SYNC * 8;
    let (mut lists, mut named) = (0, 2);
    while let Some(at) = net.nodes[0].next_wake().filter(|at| *at <= end) {
        net.now = net.now.max(at);
        let outputs = net.nodes[0].handle(Input::Tick, net.now);
        let asks = |output: &&Output| matches!(output, Output::SyncWith(_));
        for _ in outputs.iter().filter(asks) {
            lists += 1;
            let mut w = Writer::new();
            w.u16(0);
            for n in named..named + new {
                write_update(&Update::alive(Member::new(id(n), addr(n), 1)), &mut w);
            }
            named += new;
            let (from, bytes) = (id(1), w.finish());
            let bytes = &bytes;
            net.nodes[0].handle(Input::Part { from, bytes }, net.now);
        }
    }
    lists
}

#[test]
fn lists_are_compared_again_soon_while_they_bring_new_members() {
    assert!(comparisons(1) >= 8, "{}", comparisons(1));
    assert!(comparisons(0) <= 6, "{}", comparisons(0));
}
