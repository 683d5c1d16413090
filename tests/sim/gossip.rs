//! Every node of a cluster hears of every other and of every head, also when packets are lost and
//! after a cut. `cargo test --release --locked --test sim gossip -- --nocapture` prints how long
//! it took in virtual time and what it cost; `LARDER_GOSSIP_NODES=300` adds a size.

use std::time::Duration;

use larder::proto::gossip::Counters;
use larder::sim::gossip::{Cluster, Plan};

/// All nodes know each other within this, and again after a cut. Lists are compared at least once
/// a minute, and the two halves of a cut cluster first have to meet.
const ALL_KNOW_ALL: Duration = Duration::from_secs(300);

/// All nodes have a head within this: whoever gossip has missed is told within half a minute by
/// one of the others, or by the one after it.
const ALL_HAVE_A_HEAD: Duration = Duration::from_secs(180);

/// Within this each half of a cut cluster holds all of the other for dead: whoever has missed that
/// someone died finds it out by probing one member a second.
const APART: Duration = Duration::from_secs(400);

fn sizes() -> Vec<usize> {
    let more = std::env::var("LARDER_GOSSIP_NODES").unwrap_or_default();
    let more = more.split(',').filter(|text| !text.is_empty());
    let more = more.map(|text| {
        text.parse()
            .expect("LARDER_GOSSIP_NODES is a list of numbers")
    });
    [10, 100].into_iter().chain(more).collect()
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

#[test]
fn gossip_reaches_everybody_whatever_is_lost_and_after_a_cut() {
    println!(
        "nodes  loss  all know all  handshakes  head at all  cut noticed  healed  head after  datagrams  bytes  stream bytes"
    );
    println!(
        "              s             per node    s            s            s       a cut, s    per node and second"
    );
    for nodes in sizes() {
        for loss_percent in [0, 5, 20] {
            row(nodes, loss_percent);
        }
    }
}

fn row(nodes: usize, loss_percent: u32) {
    let plan = Plan {
        seed: 1 + nodes as u64,
        nodes,
        loss_percent,
    };
    let mut cluster = Cluster::new(plan);
    let joined = cluster.until_all_know_all(ALL_KNOW_ALL);
    let joined = joined.unwrap_or_else(|| panic!("{plan:?}: not all know all"));
    let handshakes = cluster.handshakes();
    cluster.run(Duration::from_secs(60));
    let cost = cluster.run(Duration::from_secs(60));
    cluster.publish(0, 1);
    let spread = cluster.until_all_have(1, ALL_HAVE_A_HEAD);
    let spread = spread.unwrap_or_else(|| panic!("{plan:?}: a head is missing somewhere"));

    cluster.cut(true);
    let apart = cluster.until_halves_are_apart(APART);
    let apart = apart.unwrap_or_else(|| panic!("{plan:?}: some do not notice the cut"));
    cluster.publish(0, 2);
    cluster.cut(false);
    let late = cluster.until_all_have(2, ALL_HAVE_A_HEAD);
    let late = late.unwrap_or_else(|| panic!("{plan:?}: the other half lacks a head"));
    let healed = cluster.until_all_know_all(ALL_KNOW_ALL);
    let healed = healed.unwrap_or_else(|| panic!("{plan:?}: two halves stay apart"));
    if loss_percent == 0 {
        // Nobody has a reason to come and go any more.
        cluster.run(Duration::from_secs(60));
        let still = cluster.until_all_know_all(Duration::ZERO);
        assert!(still.is_some(), "{plan:?}: members are lost again");
    }
    for n in 0..nodes {
        // Nothing that an honest node sends is dropped.
        let dropped = Counters {
            taken: 0,
            refused: 0,
            renewals: 0,
            ..cluster.counters(n)
        };
        assert_eq!(dropped, Counters::default(), "{plan:?}: at {n}");
    }
    println!(
        "{nodes:5}  {loss_percent:3} % {:>12}  {handshakes:10.1}  {:>11}  {:>11}  {:>6}  {:>10}  {:9.1}  {:5.0}  {:12.0}",
        seconds(joined),
        seconds(spread),
        seconds(apart),
        seconds(late + healed),
        seconds(late),
        cost.datagrams,
        cost.bytes,
        cost.stream_bytes,
    );
}

/// A large cluster that has found itself, over two minutes: a head reaches all of it, and nobody is
/// taken for dead. `LARDER_GOSSIP_TOGETHER=5000` adds a size.
#[test]
fn a_cluster_that_knows_itself_stays_together_and_spreads_heads() {
    let more = std::env::var("LARDER_GOSSIP_TOGETHER").unwrap_or_default();
    let more = more.split(',').filter(|text| !text.is_empty());
    let more = more.map(|text| text.parse().expect("a list of numbers"));
    println!("nodes  loss  head at all, s  datagrams  bytes per node and second");
    for nodes in [60].into_iter().chain(more) {
        for loss_percent in [0, 5] {
            let plan = Plan {
                seed: 1 + nodes as u64,
                nodes,
                loss_percent,
            };
            let mut cluster = Cluster::that_knows_itself(plan);
            assert_eq!(cluster.fewest_members(), nodes - 1);
            let cost = cluster.run(Duration::from_secs(60));
            cluster.publish(0, 1);
            let spread = cluster.until_all_have(1, Duration::from_secs(60));
            let spread = spread.unwrap_or_else(|| panic!("{plan:?}: a head is missing"));
            cluster.run(Duration::from_secs(60).saturating_sub(spread));
            // A packet or two that are lost make a suspect, and not a dead one.
            assert_eq!(cluster.fewest_members(), nodes - 1, "{plan:?}");
            println!(
                "{nodes:5}  {loss_percent:3} %  {:>14}  {:9.1}  {:5.0}",
                seconds(spread),
                cost.datagrams,
                cost.bytes
            );
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_cluster() {
    let run = || {
        let mut cluster = Cluster::new(Plan {
            seed: 5,
            nodes: 12,
            loss_percent: 20,
        });
        let joined = cluster.until_all_know_all(ALL_KNOW_ALL);
        (joined, cluster.run(Duration::from_secs(30)))
    };
    assert_eq!(run(), run());
}
