//! A connection to a libvirt daemon.

use std::sync::Arc;

use crate::domain::{Domain, RestoreAs};
use crate::error::Error;
use crate::event::{Lifecycle, Subscription};
use crate::ffi::{self, Handle};
use crate::object::{Kind, Object};

/// A connection; clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(crate) handle: Arc<Handle>,
}

impl Connection {
    /// Connects to `uri`: `qemu:///system`, `qemu+unix:///system?socket=PATH`, …
    ///
    /// # Errors
    /// libvirt is not installed, no daemon answers, or it lets us not in.
    pub fn open(uri: &str) -> Result<Connection, Error> {
        let handle = ffi::connect(uri)?;
        Ok(Connection { handle })
    }

    /// Whether the daemon is still there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let alive = self.handle.int(self.handle.api.virConnectIsAlive, "alive");
        alive.is_ok_and(|answer| answer == 1)
    }

    /// The host's name.
    ///
    /// # Errors
    /// [`Error::Refused`], as all calls here.
    pub fn hostname(&self) -> Result<String, Error> {
        self.handle
            .text(self.handle.api.virConnectGetHostname, "hostname")
    }

    /// The connection's URI in full.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn uri(&self) -> Result<String, Error> {
        self.handle.text(self.handle.api.virConnectGetURI, "uri")
    }

    /// What the host can do, as XML.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn capabilities(&self) -> Result<String, Error> {
        self.handle
            .text(self.handle.api.virConnectGetCapabilities, "capabilities")
    }

    /// The host's SMBIOS, as XML.
    ///
    /// # Errors
    /// [`Error::Refused`], also where the host has none.
    pub fn sysinfo(&self) -> Result<String, Error> {
        self.handle
            .xml(self.handle.api.virConnectGetSysinfo, 0, "sysinfo")
    }

    /// The daemon's version: major·1,000,000 + minor·1,000 + release.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn version(&self) -> Result<u64, Error> {
        self.handle.version()
    }

    /// All domains, running or not.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn domains(&self) -> Result<Vec<Domain>, Error> {
        let api = self.handle.api;
        let found = Handle::list(
            &self.handle,
            api.virConnectListAllDomains,
            api.virDomainFree,
            "list domains",
        )?;
        Ok(found.into_iter().map(|h| Domain::new(self, h)).collect())
    }

    /// The domain called `name`.
    ///
    /// # Errors
    /// There is none ([`Error::is_missing`]).
    pub fn domain(&self, name: &str) -> Result<Domain, Error> {
        let api = self.handle.api;
        let function = api.virDomainLookupByName;
        let found = Handle::by_text(&self.handle, function, name, api.virDomainFree, "domain")?;
        Ok(Domain::new(self, found))
    }

    /// The domain with this uuid.
    ///
    /// # Errors
    /// There is none ([`Error::is_missing`]).
    pub fn domain_by_uuid(&self, uuid: &str) -> Result<Domain, Error> {
        let api = self.handle.api;
        let function = api.virDomainLookupByUUIDString;
        let found = Handle::by_text(&self.handle, function, uuid, api.virDomainFree, "domain")?;
        Ok(Domain::new(self, found))
    }

    /// Defines a domain, or changes its definition.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn define_domain(&self, xml: &str) -> Result<Domain, Error> {
        /// `VIR_DOMAIN_DEFINE_VALIDATE` would refuse what newer releases wrote: not asked for.
        const FLAGS: u32 = 0;
        let api = self.handle.api;
        let (function, free) = (api.virDomainDefineXMLFlags, api.virDomainFree);
        let made = Handle::by_text_flags(&self.handle, function, xml, FLAGS, free, "define")?;
        Ok(Domain::new(self, made))
    }

    /// Starts a transient domain; `paused` leaves its processors stopped.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn create_domain(&self, xml: &str, paused: bool) -> Result<Domain, Error> {
        let api = self.handle.api;
        let (function, free) = (api.virDomainCreateXML, api.virDomainFree);
        let flags = u32::from(paused); // VIR_DOMAIN_START_PAUSED
        let made = Handle::by_text_flags(&self.handle, function, xml, flags, free, "create")?;
        Ok(Domain::new(self, made))
    }

    /// Restores a domain from the save image `from`, a path that the daemon can read. `xml`
    /// changes what does not change the guest: sources of disks, networks.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn restore(&self, from: &str, xml: Option<&str>, state: RestoreAs) -> Result<(), Error> {
        self.handle.restore(from, xml, state.flags())
    }

    /// All objects of a kind, active or not.
    ///
    /// # Errors
    /// [`Error::Refused`], with [`crate::ErrorCode::NO_SUPPORT`] where the daemon has no driver for them.
    pub fn objects(&self, kind: Kind) -> Result<Vec<Object>, Error> {
        Object::list(&self.handle, kind)
    }

    /// The object of a kind with this name; secrets go by their uuid.
    ///
    /// # Errors
    /// There is none ([`Error::is_missing`]).
    pub fn object(&self, kind: Kind, name: &str) -> Result<Object, Error> {
        Object::find(&self.handle, kind, name)
    }

    /// Defines an object, or changes its definition. It is not started.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn define(&self, kind: Kind, xml: &str) -> Result<Object, Error> {
        Object::define(&self.handle, kind, xml)
    }

    /// Starts an object without a definition that outlives it: a network, a pool.
    ///
    /// # Errors
    /// [`Error::Unsupported`] of other kinds, [`Error::Refused`].
    pub fn start_transient(&self, kind: Kind, xml: &str) -> Result<Object, Error> {
        Object::start_transient(&self.handle, kind, xml)
    }

    /// Follows what happens to all domains from now on.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn follow_domains(&self) -> Result<Subscription<Lifecycle>, Error> {
        Subscription::lifecycle(&self.handle)
    }
}
