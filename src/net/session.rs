use std::fmt;

use quinn::Connection;

use crate::proto::wire::Welcome;

/// Keying material of one TLS session, the same at both ends and known to nobody else.
pub type SessionKey = [u8; 32];

/// Never used for anything but larder's proofs.
const LABEL: &[u8] = b"EXPORTER-larder/1 session";

/// Says whether the one who answers may be asked, beyond what its certificate says.
///
/// # Contract
///
/// - It is asked when a connection says hello, with the welcome that came over that connection,
///   and again with the same whenever this node's trust has changed.
/// - It depends on nothing but its arguments and this node's trust, and does not block.
pub trait Vouch: fmt::Debug + Send + Sync + 'static {
    /// Why not, in one clause.
    ///
    /// # Errors
    /// The reason.
    fn vouch(&self, session: &SessionKey, welcome: &Welcome) -> Result<(), String>;
}

/// `None` only before a handshake has ended.
pub(super) fn session_key(connection: &Connection) -> Option<SessionKey> {
    let mut key = [0; 32];
    connection
        .export_keying_material(&mut key, LABEL, b"")
        .ok()
        .map(|()| key)
}
