use crate::catalog::{AtError, Catalog, CatalogId, Content, Epoch, Revision, SignedHead, Version};
use crate::proto::code::{Code, Refusal};
use crate::proto::limit::{MAX_NAMES_PER_RESOLVE, MAX_PAGE};
use crate::proto::wire::{List, Listing, Resolve, Resolved};
use crate::spec::SpecName;

/// What readers may see: one visible revision and the history that is retained with it.
#[derive(Debug, Clone)]
pub struct View {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The head of the newest visible revision.
    pub head: SignedHead,
    /// Its records.
    pub records: Catalog,
}

impl View {
    /// Answers [`Resolve`]: the opening frame, and each name's version in the order asked.
    ///
    /// # Errors
    /// [`Refusal`] when too many names are asked for or the revision cannot be read.
    pub fn resolve(&self, resolve: &Resolve) -> Result<(Resolved, Vec<Option<Version>>), Refusal> {
        if resolve.names.len() > MAX_NAMES_PER_RESOLVE {
            let message = format!(
                "{} names in one request, at most {MAX_NAMES_PER_RESOLVE} are allowed",
                resolve.names.len()
            );
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let rev = resolve.at.unwrap_or(self.records.rev());
        let versions = resolve
            .names
            .iter()
            .map(|asked| self.at(&asked.name, rev))
            .collect::<Result<_, _>>()?;
        self.records.check_at(rev).map_err(refuse_at)?;
        let opening = Resolved {
            catalog: self.catalog,
            epoch: self.epoch,
            rev,
        };
        Ok((opening, versions))
    }

    fn at(&self, name: &SpecName, rev: Revision) -> Result<Option<Version>, Refusal> {
        self.records.get_at(name, rev).map_err(refuse_at)
    }

    /// Answers [`List`]. It looks at the page and at what is left out in between; the first one of
    /// a revision that adds names sorts them all.
    ///
    /// # Errors
    /// [`Refusal`] when the revision cannot be read.
    pub fn list(&self, list: &List) -> Result<Listing, Refusal> {
        let rev = list.at.unwrap_or(self.records.rev());
        self.records.check_at(rev).map_err(refuse_at)?;
        let limit = (list.limit as usize).clamp(1, MAX_PAGE);
        let names = self.records.sorted_names();
        let first = names.partition_point(|name| {
            name.as_str() < list.prefix.as_str()
                || list.after.as_ref().is_some_and(|after| name <= after)
        });
        let mut records: Vec<_> = names[first..]
            .iter()
            .take_while(|name| name.as_str().starts_with(&list.prefix))
            .filter_map(|name| {
                let versions = self.records.versions(name);
                let after = versions.partition_point(|version| version.rev <= rev);
                let version = versions[..after].last()?;
                (list.deleted || version.content != Content::Deleted)
                    .then(|| (name.clone(), (*version).into()))
            })
            .take(limit + 1)
            .collect();
        let more = records.len() > limit;
        records.truncate(limit);
        Ok(Listing {
            catalog: self.catalog,
            epoch: self.epoch,
            rev,
            records,
            more,
        })
    }
}

fn refuse_at(error: AtError) -> Refusal {
    let (code, rev) = match error {
        AtError::Compacted { oldest, .. } => (Code::Compacted, oldest),
        AtError::Future { newest, .. } => (Code::Future, newest),
    };
    Refusal::new(code, error.to_string()).at(rev)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::{Change, HeadKey};
    use crate::proto::coordinator::{Coordinator, Ledger};
    use crate::spec::SpecHash;

    fn view(records: Catalog) -> View {
        let genesis = Coordinator::genesis(
            CatalogId::from_bytes([1; 16]),
            &HeadKey::from_bytes([1; 32]),
        );
        let ledger = Ledger::begin(&genesis).expect("a genesis");
        View {
            records,
            ..(*ledger.view()).clone()
        }
    }

    /// All pages of a list, one after the other.
    fn pages(view: &View, mut list: List) -> Vec<(SpecName, Revision)> {
        let mut all = Vec::new();
        loop {
            let page = view.list(&list).expect("readable");
            assert!(page.records.len() <= list.limit as usize);
            list.after = page.records.last().map(|(name, _)| name.clone());
            all.extend(
                page.records
                    .into_iter()
                    .map(|(name, version)| (name, version.rev)),
            );
            if !page.more {
                return all;
            }
            assert!(all.len() < 100, "the same page again and again");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a look at every record.
        #[test]
        fn pages_hold_every_name_with_the_prefix_once_and_in_order(
            steps in proptest::collection::vec(("[ab]{1,2}(/[ab])?", any::<bool>()), 1..24),
            prefix in "[ab]{0,2}/?",
            deleted: bool,
            limit in 1_u32..4,
            ago in 0_u64..24,
        ) {
            let mut catalog = Catalog::empty();
            let mut history = vec![BTreeMap::new()];
            for (number, (text, present)) in (1..).zip(&steps) {
                let rev = Revision::new(number);
                let hash = SpecHash::of(&number.to_be_bytes());
                let content = match present {
                    true => Content::Present { hash, len: 8 },
                    false => Content::Deleted,
                };
                let name: SpecName = text.parse().expect("a name");
                catalog = catalog.apply(rev, &[Change { name: name.clone(), content }]);
                // Now and then, so that an order from before would be seen.
                if number % 3 == 0 {
                    catalog.sorted_names();
                }
                let mut now = history[history.len() - 1].clone();
                now.insert(name, (rev, *present));
                history.push(now);
            }
            let at = catalog.rev().get().saturating_sub(ago);
            let expected: Vec<_> = history[usize::try_from(at).expect("small")]
                .iter()
                .filter(|(name, (_, present))| {
                    name.as_str().starts_with(&prefix) && (deleted || *present)
                })
                .map(|(name, (rev, _))| (name.clone(), *rev))
                .collect();
            let list = List { at: Some(Revision::new(at)), prefix, after: None, deleted, limit };
            prop_assert_eq!(pages(&view(catalog), list), expected);
        }
    }
}
