//! What a publish must satisfy before it gets a revision.

use crate::catalog::{
    Change, Content, Entry, Keyed, MAX_NAMES, MAX_NAMES_PER_PUBLISH, Published, Revision,
};
use crate::codec::Writer;
use crate::proto::code::{Code, Refusal};
use crate::proto::coordinator::{Coordinator, Output, Ticket};
use crate::proto::limit::{KEY_LIFETIME, MAX_KEYS, MAX_PENDING};
use crate::proto::mutant::mutant;
use crate::proto::wire::{Publish, PublishName};

impl Coordinator {
    pub(super) fn publish(
        &mut self,
        ticket: Ticket,
        by: String,
        publish: Publish,
        unix_ms: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if let Some(reason) = &self.lost {
            let message = format!("the coordinator's disk failed and takes nothing: {reason}");
            return Err(Refusal::new(Code::Disk, message));
        }
        check_form(&publish, self.options.max_spec_len)?;
        let request = request_digest(&publish);
        self.ledger.expire_keys(unix_ms, KEY_LIFETIME);
        self.end_pins(unix_ms);
        if let Some(key) = publish.key.filter(|_| !mutant!(X20))
            && let Some(known) = self.ledger.key(&by, &key)
        {
            if known.request != request {
                let message = "this idempotency key was used with other content";
                return Err(Refusal::new(Code::KeyReused, message).at(known.rev));
            }
            let (rev, changed) = (known.rev, known.changed);
            // Its own entry may still be on the way.
            let number = self.key_numbers.get(&(by, key)).copied();
            self.answer_or_wait(ticket, rev, changed, number.unwrap_or_default(), out);
            return Ok(());
        }
        if self.waiting.len() + self.refused.len() >= MAX_PENDING {
            return Err(Refusal::new(Code::Busy, "too many publishes are waiting"));
        }
        if publish.key.is_some() && self.ledger.keys() >= MAX_KEYS {
            let message = "too many idempotency keys of the last 24 hours are remembered; a publish without one is still taken";
            return Err(Refusal::new(Code::Busy, message));
        }
        self.check_expected(&publish.changes)?;
        let changes = self.effective_changes(&publish.changes)?;
        let rev = match changes.is_empty() {
            true => self.rev_that_shows(&publish.changes),
            false => self.ledger.tip().rev().next(),
        };
        let changed = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        let keyed = publish.key.map(|key| Keyed {
            by: by.clone(),
            key,
            request,
            rev,
            changed,
            at_unix_ms: unix_ms,
        });
        if changes.is_empty() {
            let number = keyed.map_or(0, |keyed| {
                self.ledger.remember(keyed.clone());
                let (by, key) = (keyed.by.clone(), keyed.key);
                let number = self.enqueue(Entry::Keyed(keyed));
                self.key_numbers.insert((by, key), number);
                number
            });
            self.answer_or_wait(ticket, rev, 0, number, out);
            return Ok(());
        }
        let published = Published {
            by,
            at_unix_ms: unix_ms,
            note: publish.note,
        };
        let key = keyed.as_ref().map(|keyed| (keyed.by.clone(), keyed.key));
        let number = self.queue_revision(changes, published, keyed);
        if let Some(key) = key {
            self.key_numbers.insert(key, number);
        }
        self.answer_or_wait(ticket, rev, changed, number, out);
        Ok(())
    }

    /// Compares with the newest pending or visible record, never with the visible one alone.
    fn check_expected(&self, changes: &[PublishName]) -> Result<(), Refusal> {
        for PublishName { name, expect, .. } in changes {
            let Some(expect) = *expect else { continue };
            let newest = match mutant!(X31) {
                true => self.ledger.visible(),
                false => self.ledger.tip(),
            };
            let current = newest.get(name);
            let rev = current.map_or(Revision::ZERO, |version| version.rev);
            let absent = current.is_none_or(|version| version.content == Content::Deleted);
            if rev == expect || (expect == Revision::ZERO && absent) {
                continue;
            }
            let message = match expect {
                Revision::ZERO => format!("`{name}` exists already, at revision {rev}"),
                _ if current.is_none() => format!("`{name}` does not exist"),
                _ => format!("`{name}` is at revision {rev}, not at {expect}"),
            };
            return Err(Refusal::new(Code::Expect, message)
                .at(rev)
                .about(name.clone()));
        }
        Ok(())
    }

    /// What is not so already.
    fn effective_changes(&self, wanted: &[PublishName]) -> Result<Vec<Change>, Refusal> {
        let tip = self.ledger.tip();
        let mut new_names = 0;
        let changes: Vec<_> = wanted
            .iter()
            .filter_map(|wanted| {
                let content = match wanted.hash {
                    Some(hash) => Content::Present {
                        hash,
                        len: wanted.len,
                    },
                    None => Content::Deleted,
                };
                let current = tip.get(&wanted.name).map(|version| version.content);
                if current.unwrap_or(Content::Deleted) == content {
                    return None;
                }
                new_names += usize::from(current.is_none());
                let name = wanted.name.clone();
                Some(Change { name, content })
            })
            .collect();
        if tip.names() + new_names > MAX_NAMES {
            let message = format!("a catalog holds at most {MAX_NAMES} names");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        Ok(changes)
    }

    /// The first revision at which everything that was asked for holds already: the visible one,
    /// or the pending one that brings the last of it.
    fn rev_that_shows(&self, wanted: &[PublishName]) -> Revision {
        wanted
            .iter()
            .filter_map(|wanted| self.ledger.tip().get(&wanted.name))
            .map(|version| version.rev)
            .chain([self.ledger.visible().rev()])
            .max()
            .unwrap_or_default()
    }
}

/// Whether a publish makes sense by itself, whatever the catalog holds.
///
/// # Errors
/// [`Refusal`] that says what is wrong with it.
pub fn check_form(publish: &Publish, max_spec_len: u64) -> Result<(), Refusal> {
    let count = publish.changes.len();
    if count == 0 {
        return Err(Refusal::new(Code::Invalid, "a publish names nothing"));
    }
    if count > MAX_NAMES_PER_PUBLISH {
        let message =
            format!("a publish of {count} names, at most {MAX_NAMES_PER_PUBLISH} are allowed");
        return Err(Refusal::new(Code::TooLarge, message));
    }
    if publish.note.len() > Published::MAX_NOTE_LEN {
        let message = format!("a note has at most {} bytes", Published::MAX_NOTE_LEN);
        return Err(Refusal::new(Code::TooLarge, message));
    }
    let mut names: Vec<_> = publish.changes.iter().map(|change| &change.name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = format!("a publish names `{}` twice", pair[0]);
        return Err(Refusal::new(Code::Invalid, message).about(pair[0].clone()));
    }
    for PublishName {
        name, hash, len, ..
    } in &publish.changes
    {
        let message = match hash {
            Some(_) if *len == 0 => "a definition is never empty".to_owned(),
            Some(_) if *len > max_spec_len => format!(
                "`{name}` has {len} bytes, at most {} are allowed",
                max_spec_len
            ),
            None if *len != 0 => "a deletion has no length".to_owned(),
            _ => continue,
        };
        return Err(Refusal::new(Code::Invalid, message).about(name.clone()));
    }
    Ok(())
}

/// Tells a repetition from another request under the same key. The note is for people and does
/// not count.
fn request_digest(publish: &Publish) -> [u8; 32] {
    let mut w = Writer::new();
    w.raw(b"larder publish 1\0");
    for PublishName {
        name,
        hash,
        len,
        expect,
    } in &publish.changes
    {
        w.text(name.as_str());
        match hash {
            Some(hash) => w.u8(1).hash(*hash).u64(*len),
            None => w.u8(0),
        };
        match expect {
            Some(rev) => w.u8(1).u64(rev.get()),
            None => w.u8(0),
        };
    }
    *blake3::hash(&w.finish()).as_bytes()
}
