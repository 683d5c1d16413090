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

    /// Answers [`List`].
    ///
    /// # Errors
    /// [`Refusal`] when the revision cannot be read.
    pub fn list(&self, list: &List) -> Result<Listing, Refusal> {
        let rev = list.at.unwrap_or(self.records.rev());
        self.records.check_at(rev).map_err(refuse_at)?;
        let limit = (list.limit as usize).clamp(1, MAX_PAGE);
        let wanted = |name: &SpecName| {
            name.as_str().starts_with(&list.prefix)
                && list.after.as_ref().is_none_or(|after| name > after)
        };
        let mut records: Vec<_> = self
            .records
            .iter()
            .filter(|(name, _)| wanted(name))
            .filter_map(|(name, versions)| {
                let after = versions.partition_point(|version| version.rev <= rev);
                let version = versions[..after].last()?;
                (list.deleted || version.content != Content::Deleted)
                    .then(|| (name.clone(), (*version).into()))
            })
            .collect();
        records.sort_unstable_by(|(a, _), (b, _): &(SpecName, _)| a.cmp(b));
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
