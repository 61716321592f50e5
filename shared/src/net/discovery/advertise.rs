//! A node makes itself known by mDNS and DNS-SD.

use std::time::Duration;

use mdns_sd::{IfKind, IfPredicate, ServiceDaemon, ServiceInfo};

use super::{SERVICE, interfaces::unfit};
use crate::net::beacon::{Advert, HOST_BYTES_MAX, RELEASE_BYTES_MAX, within};

/// How long a node that stops waits until its goodbye is out.
const GOODBYE: Duration = Duration::from_millis(250);
/// What a label of DNS has room for, less the number of the node.
const INSTANCE_BYTES_MAX: usize = 40;

/// mDNS does not work here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("mDNS does not work: {0}")]
pub struct MdnsError(pub String);

impl From<mdns_sd::Error> for MdnsError {
    fn from(why: mdns_sd::Error) -> Self {
        Self(why.to_string())
    }
}

/// Advertises `_svdnode._udp` until it is dropped.
pub struct Advertiser {
    daemon: ServiceDaemon,
    name: String,
}

impl Advertiser {
    /// Begins to advertise on the interface of that name, or on all on which others may be.
    pub fn start(me: &Advert, interface: Option<&str>) -> Result<Self, MdnsError> {
        let daemon = daemon(interface)?;
        // The number makes both names unique, so nobody need be asked whether they are taken. The host's own name is not
        // used as one of DNS: it may belong to another responder on this machine, and may resolve to anything.
        let instance = format!("{} {:016x}", within(&me.host, INSTANCE_BYTES_MAX), me.id);
        let server = format!("svdnode-{:016x}.local.", me.id);
        let properties = [
            ("id", format!("{:016x}", me.id)),
            ("farm", me.fingerprint.to_string()),
            ("host", within(&me.host, HOST_BYTES_MAX).to_owned()),
            ("cores", me.cores.to_string()),
            ("memory", me.memory_bytes.to_string()),
            ("version", within(&me.release, RELEASE_BYTES_MAX).to_owned()),
            (
                "protocol",
                format!("{}-{}", me.protocol.oldest, me.protocol.newest),
            ),
            ("port", me.port.to_string()),
        ];
        let mut info = ServiceInfo::new(SERVICE, &instance, &server, "", me.port, &properties[..])?
            .enable_addr_auto();
        info.set_requires_probe(false);
        info.set_interfaces(vec![those(interface, true)]);
        let name = info.get_fullname().to_owned();
        daemon.register(info)?;
        Ok(Self { daemon, name })
    }
}

impl Drop for Advertiser {
    fn drop(&mut self) {
        if let Ok(done) = self.daemon.unregister(&self.name) {
            let _ = done.recv_timeout(GOODBYE);
        }
        let _ = self.daemon.shutdown();
    }
}

/// A responder and browser that uses no interface but those on which others may be.
pub(super) fn daemon(interface: Option<&str>) -> Result<ServiceDaemon, MdnsError> {
    let daemon = ServiceDaemon::new()?;
    daemon.disable_interface(those(interface, false))?;
    Ok(daemon)
}

/// The interfaces that are fit for a search, or those that are not.
fn those(interface: Option<&str>, fit: bool) -> IfKind {
    let picked = interface.map(str::to_owned);
    IfKind::Predicate(IfPredicate::new(move |other| {
        unfit(&other.name, other.is_loopback(), picked.as_deref()).is_none() == fit
    }))
}
