//! Records of a catalog, page by page, at one revision.

use larder::answer::Failure;
use larder::api::Api;
use larder::catalog::Revision;
use larder::proto::limit::MAX_PAGE;
use larder::proto::wire::{List, Listing, WireVersion};
use larder::spec::SpecName;

/// Names that are compared to find the nearest: a command that has failed anyway should not take
/// long.
const MAX_COMPARED: usize = 100_000;

/// Nearest names that are told.
const MAX_NEAREST: usize = 3;

/// Pages of one listing. All are read at the revision of the first.
pub(crate) struct Pages<'a> {
    api: &'a dyn Api,
    next: Option<List>,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(api: &'a dyn Api, prefix: &str, at: Option<Revision>, deleted: bool) -> Self {
        let next = Some(List {
            at,
            prefix: prefix.to_owned(),
            after: None,
            deleted,
            limit: MAX_PAGE as u32,
        });
        Self { api, next }
    }

    /// The next page; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Listing>, Failure> {
        let Some(list) = self.next.take() else {
            return Ok(None);
        };
        let page = self.api.list(list.clone()).await?;
        // A page without records leads nowhere, whatever it says.
        if let Some((last, _)) = page.records.last().filter(|_| page.more) {
            self.next = Some(List {
                at: Some(page.rev),
                after: Some(last.clone()),
                ..list
            });
        }
        Ok(Some(page))
    }
}

/// The version of one name, without its body; `None` when there is no such name now.
pub(crate) async fn current(
    api: &dyn Api,
    name: &SpecName,
) -> Result<Option<WireVersion>, Failure> {
    let list = List {
        at: None,
        prefix: name.to_string(),
        after: None,
        deleted: false,
        // A name sorts before all that it is a prefix of.
        limit: 1,
    };
    let first = api.list(list).await?.records.into_iter().next();
    Ok(first.and_then(|(found, version)| (found == *name).then_some(version)))
}

/// Words for a name that does not exist: the most similar ones that do.
pub(crate) async fn did_you_mean(
    api: &dyn Api,
    name: &SpecName,
    at: Option<Revision>,
) -> Option<String> {
    let mut names = Vec::new();
    let mut pages = Pages::new(api, "", at, false);
    while let Ok(Some(page)) = pages.next().await {
        names.extend(page.records.into_iter().map(|(name, _)| name));
        if names.len() >= MAX_COMPARED {
            break;
        }
    }
    let quoted: Vec<_> = nearest(name.as_str(), names.iter().map(SpecName::as_str))
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    match quoted.as_slice() {
        [] => None,
        [one] => Some(format!("did you mean {one}?")),
        [first @ .., last] => Some(format!("did you mean {} or {last}?", first.join(", "))),
    }
}

fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let last = |name: &'a str| name.rsplit('/').next().unwrap_or(name);
    let distance = |name: &'a str| {
        let whole = strsim::damerau_levenshtein(wanted, name);
        // The right name in another folder is one mistake.
        let leaf = strsim::damerau_levenshtein(wanted, last(name)) + 1;
        whole.min(leaf)
    };
    let allowed = (wanted.len() / 3).clamp(2, 4);
    let mut near: Vec<_> = names
        .map(|name| (distance(name), name))
        .filter(|&(distance, _)| distance <= allowed)
        .collect();
    near.sort_unstable();
    near.truncate(MAX_NEAREST);
    near.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, run_on};
    use super::*;

    #[test]
    fn every_page_is_of_the_revision_of_the_first() {
        let fake = Fake::with(&[("a", "1"), ("c", "1")]);
        fake.page_by(1);
        let read = run_on(false, async |_| {
            let mut pages = Pages::new(&fake, "", None, false);
            let mut names = Vec::new();
            while let Some(page) = pages.next().await? {
                assert_eq!(page.rev, Revision::new(1));
                names.extend(page.records.into_iter().map(|(name, _)| name.to_string()));
                fake.put(&[("b", "2")]);
            }
            assert_eq!(names, ["a", "c"]);
            Ok(())
        });
        read.expect("listed");
    }

    #[test]
    fn the_nearest_names_are_few_and_the_best_first() {
        let names = [
            "etl/daily",
            "etl/dally",
            "etl/weekly",
            "daily",
            "other",
            "a/daily",
        ];
        let near = |wanted| nearest(wanted, names.into_iter());
        assert_eq!(near("etl/dayly"), ["etl/daily", "etl/dally"]);
        // The right name in another folder is as good as a slip in this one.
        assert_eq!(near("dialy"), ["daily", "a/daily", "etl/daily"]);
        assert!(near("nothing/like/it").is_empty());
    }
}
