//! Who may ask what: the table of request x role, as code.

use crate::identity::Role;
use crate::proto::code::{Code, Refusal};
use crate::proto::wire::Request;

/// The kinds of request, without their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// First on every connection.
    Hello,
    /// Names to records and bodies.
    Resolve,
    /// A hash to its body.
    GetBlob,
    /// Records by prefix.
    List,
    /// History.
    GetLog,
    /// What the node thinks of itself.
    GetStatus,
    /// Which bodies the coordinator lacks.
    Have,
    /// A body.
    PutBlob,
    /// A change of the catalog.
    Publish,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Hello,
        Self::Resolve,
        Self::GetBlob,
        Self::List,
        Self::GetLog,
        Self::GetStatus,
        Self::Have,
        Self::PutBlob,
        Self::Publish,
    ];

    /// One lower-case word, for messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Resolve => "resolve",
            Self::GetBlob => "get-blob",
            Self::List => "list",
            Self::GetLog => "get-log",
            Self::GetStatus => "get-status",
            Self::Have => "have",
            Self::PutBlob => "put-blob",
            Self::Publish => "publish",
        }
    }
}

impl Request {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Resolve(_) => Kind::Resolve,
            Self::GetBlob(_) => Kind::GetBlob,
            Self::List(_) => Kind::List,
            Self::GetLog(_) => Kind::GetLog,
            Self::GetStatus => Kind::GetStatus,
            Self::Have(_) => Kind::Have,
            Self::PutBlob(_) => Kind::PutBlob,
            Self::Publish(_) => Kind::Publish,
        }
    }
}

/// Whether a node with role `asker` may send `kind`.
///
/// Reading is for every member. Writing is for publishers alone: a worker or even another
/// coordinator that wants to publish needs a publisher's certificate.
pub const fn allowed(kind: Kind, asker: Role) -> bool {
    match kind {
        Kind::Hello
        | Kind::Resolve
        | Kind::GetBlob
        | Kind::List
        | Kind::GetLog
        | Kind::GetStatus => true,
        Kind::Have | Kind::PutBlob | Kind::Publish => matches!(asker, Role::Publisher),
    }
}

/// The same as a result.
///
/// # Errors
/// [`Code::NotAllowed`], with a message that names the role.
pub fn check(kind: Kind, asker: Role) -> Result<(), Refusal> {
    if allowed(kind, asker) {
        return Ok(());
    }
    let message = format!(
        "a {asker} certificate may not send {}, only a publisher's may",
        kind.as_str()
    );
    Err(Refusal::new(Code::NotAllowed, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        use Kind::{GetBlob, GetLog, GetStatus, Have, Hello, List, Publish, PutBlob, Resolve};
        use Role::{Coordinator, Publisher, Reader, Worker};
        let reads = [Hello, Resolve, GetBlob, List, GetLog, GetStatus];
        let writes = [Have, PutBlob, Publish];
        assert_eq!(reads.len() + writes.len(), Kind::ALL.len());
        for role in [Coordinator, Worker, Publisher, Reader] {
            for kind in reads {
                assert!(check(kind, role).is_ok(), "{kind:?} {role}");
            }
            for kind in writes {
                let result = check(kind, role).map_err(|refusal| refusal.code);
                let expected = match role {
                    Publisher => Ok(()),
                    Coordinator | Worker | Reader => Err(Code::NotAllowed),
                };
                assert_eq!(result, expected, "{kind:?} {role}");
            }
        }
    }
}
