//! How many blobs there were when that was last written: sled drops what stands behind damage in
//! its log without a word, and this tells how much that was. Nothing depends on it.

use std::fs;
use std::path::Path;

/// Name of the file beside sled.
pub(super) const FILE: &str = "count";

/// Writes the number; it is never synced, as it is only told.
pub(super) fn write(dir: &Path, blobs: usize) {
    if let Err(error) = fs::write(dir.join(FILE), format!("{blobs}\n")) {
        tracing::warn!(%error, "the number of blobs is not written down");
    }
}

/// How many of those that were counted last are not among `blobs` now, and says so loudly. After a
/// crash some may have been evicted since.
pub(super) fn lost(dir: &Path, blobs: usize) -> usize {
    let counted = fs::read_to_string(dir.join(FILE)).ok();
    // A number that a crash cut short is none.
    let counted = counted.and_then(|text| text.strip_suffix('\n')?.parse::<usize>().ok());
    let lost = counted.unwrap_or(0).saturating_sub(blobs);
    if lost > 0 {
        metrics::counter!("larder_store_lost_total").increment(lost as u64);
        tracing::error!(
            store = %dir.display(),
            lost,
            left = blobs,
            "blobs that were here before are gone; they are fetched again when they are needed"
        );
    }
    lost
}
