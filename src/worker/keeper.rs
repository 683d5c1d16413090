//! The file of a worker's copy of the catalog, as the store's thread writes it, and up to when that
//! copy reflects everything.

use std::collections::BTreeSet;
use std::path::Path;

use super::copy;
use crate::catalog::{HeadVerifier, Revision};
use crate::proto::replica::Replica;
use crate::proto::worker::KeptAnchor;
use crate::spec::SpecName;
use crate::store::anchor::AnchorFile;
use crate::store::file::RealDisk;
use crate::store::replica::{Replica as File, ReplicaError};

/// The copy on disk, and the names that this worker has read.
#[derive(Debug)]
pub(super) struct Keeper {
    file: File<RealDisk>,
    /// The revision that the file shows; `None` when it must be written anew.
    shown: Option<Revision>,
    used: BTreeSet<SpecName>,
    dirty: bool,
    /// `None` if it does not open: bounded reads are then asked after a restart.
    anchor: Option<AnchorFile<RealDisk>>,
}

/// What an earlier process left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// The catalog, if it is to be believed.
    pub(super) replica: Option<Replica>,
    /// The names that it had read.
    pub(super) used: BTreeSet<SpecName>,
    /// Up to when the catalog reflected everything.
    pub(super) anchor: Option<KeptAnchor>,
}

impl Keeper {
    /// Opens the copy in the worker's store `dir`.
    ///
    /// # Errors
    /// [`ReplicaError`], never for damage: the catalog is then fetched anew.
    pub(super) fn open(
        dir: &Path,
        verifier: &dyn HeadVerifier,
    ) -> Result<(Self, Left), ReplicaError> {
        let (file, replayed) = File::open(RealDisk::new(dir))?;
        let payloads = replayed
            .map(|replayed| replayed.payloads)
            .unwrap_or_default();
        let (used, payloads) = copy::take_names(payloads);
        let replica = copy::restore(&payloads, verifier);
        if replica.is_none() && !payloads.is_empty() {
            tracing::warn!("the copy of the catalog is not to be believed and is fetched anew");
        }
        let (anchor, kept) = match AnchorFile::open(RealDisk::new(dir)) {
            Ok((file, kept)) => (Some(file), kept),
            Err(error) => {
                tracing::warn!(%error, "the anchor of bounded reads cannot be opened");
                (None, None)
            }
        };
        let keeper = Self {
            anchor,
            file,
            // Steps that did not follow are still in the file: the next change writes it anew.
            shown: None,
            used: used.clone(),
            dirty: false,
        };
        let left = Left {
            replica,
            used,
            anchor: kept,
        };
        Ok((keeper, left))
    }

    /// Writes `replica`, or only what it has after `after` if the file shows that.
    ///
    /// # Errors
    /// [`ReplicaError`]; the next time it is written anew.
    pub(super) fn keep(
        &mut self,
        replica: &Replica,
        after: Option<Revision>,
    ) -> Result<(), ReplicaError> {
        let follows = after.is_some() && self.shown == after && !self.file.is_rewrite_due();
        self.shown = None;
        match after.filter(|_| follows) {
            Some(after) => {
                for payload in copy::steps(replica, after) {
                    self.file.append(&payload)?;
                }
                self.dirty = true;
            }
            None => {
                let names = self.used.iter().map(copy::name);
                self.file
                    .rewrite(copy::whole(replica).into_iter().chain(names))?;
            }
        }
        self.shown = Some(replica.rev());
        Ok(())
    }

    /// Remembers that `name` was read.
    ///
    /// # Errors
    /// [`ReplicaError`]; it is remembered with the next rewrite.
    pub(super) fn note_use(&mut self, name: SpecName) -> Result<(), ReplicaError> {
        let payload = copy::name(&name);
        if self.used.insert(name) {
            self.dirty = true;
            self.file.append(&payload)?;
        }
        Ok(())
    }

    /// Remembers up to when the catalog reflects everything. It may be of a later state than the
    /// copy shows; who reads it compares them.
    ///
    /// # Errors
    /// Those of the operating system; bounded reads may be asked after a restart then.
    pub(super) fn keep_anchor(&mut self, anchor: KeptAnchor) -> std::io::Result<()> {
        match &mut self.anchor {
            Some(file) => file.write(anchor),
            None => Ok(()),
        }
    }

    /// Makes what was written survive a power cut.
    ///
    /// # Errors
    /// [`ReplicaError`]; the next change writes it anew.
    pub(super) fn sync(&mut self) -> Result<(), ReplicaError> {
        if std::mem::take(&mut self.dirty) {
            self.file.sync().inspect_err(|_| self.shown = None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::copy::tests::{key, sample, sample_to};

    fn open(dir: &Path) -> (Keeper, Left) {
        Keeper::open(dir, &key().pinned()).expect("it opens")
    }

    #[test]
    fn a_copy_comes_back_after_a_restart_with_what_was_added() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut keeper, left) = open(dir.path());
        assert!(left.replica.is_none());
        keeper.keep(&sample_to(10), None).expect("kept");
        keeper
            .note_use("n1".parse().expect("a name"))
            .expect("noted");
        keeper
            .keep(&sample(), Some(Revision::new(10)))
            .expect("kept");
        keeper.sync().expect("synced");
        drop(keeper);
        let (mut keeper, left) = open(dir.path());
        let replica = left.replica.expect("a replica");
        assert_eq!(replica.signed(), sample().signed());
        assert_eq!(left.used.len(), 1);
        // Written anew: the names stay.
        keeper.keep(&replica, Some(replica.rev())).expect("kept");
        drop(keeper);
        assert_eq!(open(dir.path()).1.used.len(), 1);
    }

    #[test]
    fn steps_that_do_not_follow_what_the_file_shows_make_it_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut keeper, _) = open(dir.path());
        keeper.keep(&sample_to(5), None).expect("kept");
        keeper
            .keep(&sample(), Some(Revision::new(9)))
            .expect("kept");
        drop(keeper);
        let replica = open(dir.path()).1.replica.expect("a replica");
        assert_eq!(replica.signed(), sample().signed());
    }
}
