use larder::spec::{Spec, SpecName};

/// Length of every body: what a workflow definition usually has.
pub(crate) const BODY_LEN: usize = 4 << 10;

/// Distinct definitions that any process can make again from the seed.
pub(crate) fn specs(seed: u64, count: usize) -> Vec<Spec> {
    (0..count).map(|number| spec(seed, number)).collect()
}

/// The name under which a definition is published.
pub(crate) fn name(number: usize) -> SpecName {
    let name = format!("bench/{number:06}");
    name.parse().expect("letters, a slash and digits")
}

/// The numbers below `count` in an order that the seed decides.
pub(crate) fn shuffled(seed: u64, count: usize) -> Vec<usize> {
    let mut numbers: Vec<_> = (0..count).collect();
    numbers.sort_by_key(|&number| *bytes(seed, "order", number).finalize().as_bytes());
    numbers
}

/// One of them: letters and digits that look random, since nothing may gain by compressing them.
pub(crate) fn spec(seed: u64, number: usize) -> Spec {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut body = vec![0; BODY_LEN];
    bytes(seed, "body", number).finalize_xof().fill(&mut body);
    for byte in &mut body {
        *byte = LETTERS[usize::from(*byte) % LETTERS.len()];
    }
    Spec::new(body.into())
}

fn bytes(seed: u64, what: &str, number: usize) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_be_bytes());
    hasher.update(&(number as u64).to_be_bytes());
    hasher.update(what.as_bytes());
    hasher
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn definitions_are_distinct_and_come_from_the_seed() {
        let some = specs(7, 100);
        assert_eq!(some, specs(7, 100));
        assert_ne!(some, specs(8, 100));
        let hashes: BTreeSet<_> = some.iter().map(Spec::hash).collect();
        assert_eq!(hashes.len(), 100);
        assert!(some.iter().all(|spec| spec.bytes().len() == BODY_LEN));
    }

    #[test]
    fn the_order_holds_every_number_once() {
        let mut order = shuffled(7, 100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
