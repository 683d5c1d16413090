use std::collections::BTreeMap;

/// Keys in the order of their last use, each with a value.
#[derive(Debug)]
pub(super) struct Recency<K, V> {
    by_key: BTreeMap<K, (u64, V)>,
    by_use: BTreeMap<u64, K>,
    next_use: u64,
}

impl<K, V> Default for Recency<K, V> {
    fn default() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_use: BTreeMap::new(),
            next_use: 0,
        }
    }
}

impl<K: Ord + Clone, V> Recency<K, V> {
    /// Adds or replaces a key as the one used last; returns the number of this use.
    pub(super) fn insert(&mut self, key: K, value: V) -> u64 {
        self.remove(&key);
        let now = self.next_use;
        self.next_use += 1;
        self.by_use.insert(now, key.clone());
        self.by_key.insert(key, (now, value));
        now
    }

    /// Adds a key with the number of its last use as [`insert`](Self::insert) gave it in an
    /// earlier life. Keys come in the order of these numbers.
    pub(super) fn restore(&mut self, key: K, value: V, at: u64) {
        self.next_use = self.next_use.max(at);
        self.insert(key, value);
    }

    /// Makes a known key the one used last; says whether it is known.
    pub(super) fn touch(&mut self, key: &K) -> bool {
        let Some((at, _)) = self.by_key.get_mut(key) else {
            return false;
        };
        // The entry and its key stay where they are: this is on the path of every read.
        if let Some(key) = self.by_use.remove(at) {
            self.by_use.insert(self.next_use, key);
        }
        *at = self.next_use;
        self.next_use += 1;
        true
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (at, value) = self.by_key.remove(key)?;
        self.by_use.remove(&at);
        Some(value)
    }

    /// The value of a key and the number of its last use.
    pub(super) fn get(&self, key: &K) -> Option<(u64, &V)> {
        self.by_key.get(key).map(|(at, value)| (*at, value))
    }

    /// Each key with the number of its last use and its value, in order of keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, u64, &V)> {
        self.by_key
            .iter()
            .map(|(key, (at, value))| (key, *at, value))
    }

    /// From the one not used for longest on.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (&K, &V)> {
        self.by_use
            .values()
            .filter_map(|key| self.by_key.get(key).map(|(_, value)| (key, value)))
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first_and_a_touch_makes_young() {
        let mut recency = Recency::default();
        for key in ["a", "b", "c"] {
            recency.insert(key, key.len());
        }
        assert!(recency.touch(&"a"));
        assert!(!recency.touch(&"z"));
        recency.insert("b", 5);
        let order: Vec<_> = recency.oldest_first().collect();
        assert_eq!(order, [(&"c", &1), (&"a", &1), (&"b", &5)]);
        assert_eq!(recency.remove(&"a"), Some(1));
        assert_eq!(recency.remove(&"a"), None);
        assert_eq!(recency.len(), 2);
        assert_eq!(recency.get(&"b"), Some((4, &5)));
        let all: Vec<_> = recency.iter().collect();
        assert_eq!(all, [(&"b", 4, &5), (&"c", 2, &1)]);
    }
}
