//! Guests.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::connection::Connection;
use crate::error::Error;
use crate::event::{MonitorEvent, Subscription};
use crate::ffi::{FreeFn, Handle, ListFn, XmlFn};

/// `VIR_DOMAIN_XML_SECURE`: with passwords of displays.
const XML_SECURE: u32 = 1;
/// `VIR_DOMAIN_XML_INACTIVE`: the definition, not what runs.
const XML_INACTIVE: u32 = 2;
/// `VIR_DOMAIN_XML_MIGRATABLE`: what another host can start.
const XML_MIGRATABLE: u32 = 8;

/// A domain's state, as libvirt tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainState {
    /// Its processors run, or wait for work.
    Running,
    /// Stopped by somebody.
    Paused,
    /// It is shutting down.
    ShuttingDown,
    /// It does not run.
    ShutOff,
    /// It crashed.
    Crashed,
    /// Its own power management suspended it.
    Suspended,
    /// Anything newer.
    Other(i32),
}

/// How a restored domain begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreAs {
    /// As it was saved.
    Saved,
    /// Running.
    Running,
    /// Paused.
    Paused,
}

impl RestoreAs {
    pub(crate) fn flags(self) -> u32 {
        match self {
            RestoreAs::Saved => 0,
            RestoreAs::Running => 2,
            RestoreAs::Paused => 4,
        }
    }
}

/// What goes with a definition that is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UndefineFlags {
    /// The managed save image.
    pub managed_save: bool,
    /// UEFI variables.
    pub nvram: bool,
    /// Metadata of snapshots and checkpoints.
    pub metadata: bool,
}

impl UndefineFlags {
    /// `virDomainUndefineFlagsValues`.
    fn bits(self) -> u32 {
        let nvram = if self.nvram { 4 } else { 8 };
        let metadata = if self.metadata { 2 | 16 } else { 0 };
        u32::from(self.managed_save) | nvram | metadata
    }
}

/// What QEMU answered to a monitor command.
#[derive(Debug)]
pub struct MonitorAnswer {
    /// The whole message: `{"return": …}` or `{"error": …}`.
    pub message: String,
    /// Files that QEMU gave.
    pub files: Vec<File>,
}

/// A guest of libvirt's.
#[derive(Debug, Clone)]
pub struct Domain {
    handle: Arc<Handle>,
    connection: Connection,
}

impl Domain {
    pub(crate) fn new(connection: &Connection, handle: Handle) -> Domain {
        Domain {
            handle: Arc::new(handle),
            connection: connection.clone(),
        }
    }

    /// The connection it was found by.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.handle.name(self.handle.api.virDomainGetName)
    }

    /// Its uuid.
    ///
    /// # Errors
    /// [`Error::Refused`], as all calls here.
    pub fn uuid(&self) -> Result<String, Error> {
        self.handle
            .uuid(self.handle.api.virDomainGetUUIDString, "uuid")
    }

    /// Its state.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn state(&self) -> Result<DomainState, Error> {
        let (state, _) = self.handle.domain_state()?;
        Ok(match state {
            1 | 2 => DomainState::Running,
            3 => DomainState::Paused,
            4 => DomainState::ShuttingDown,
            5 => DomainState::ShutOff,
            6 => DomainState::Crashed,
            7 => DomainState::Suspended,
            other => DomainState::Other(other),
        })
    }

    fn describe(&self, flags: u32) -> Result<String, Error> {
        let function = self.handle.api.virDomainGetXMLDesc;
        self.handle.xml(function, flags, "XML of a domain")
    }

    /// What runs, or else its definition; without passwords.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn live_xml(&self) -> Result<String, Error> {
        self.describe(0)
    }

    /// Its definition, with passwords of displays: keep it secret.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn definition(&self) -> Result<String, Error> {
        self.describe(XML_SECURE | XML_INACTIVE)
    }

    /// Its definition without passwords.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn public_definition(&self) -> Result<String, Error> {
        self.describe(XML_INACTIVE)
    }

    /// What another host could start its state with, with passwords: keep it secret.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn migratable_xml(&self) -> Result<String, Error> {
        self.describe(XML_SECURE | XML_MIGRATABLE)
    }

    /// Whether it has a definition that outlives its process.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn is_persistent(&self) -> Result<bool, Error> {
        let function = self.handle.api.virDomainIsPersistent;
        Ok(self.handle.int(function, "persistent")? == 1)
    }

    /// Starts it; `paused` leaves its processors stopped.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn start(&self, paused: bool) -> Result<(), Error> {
        let function = self.handle.api.virDomainCreateWithFlags;
        self.handle.flags(function, u32::from(paused), "start")?;
        Ok(())
    }

    /// Ends its process.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn destroy(&self) -> Result<(), Error> {
        let function = self.handle.api.virDomainDestroyFlags;
        self.handle.flags(function, 0, "destroy")?;
        Ok(())
    }

    /// Asks its system to power off.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn shutdown(&self) -> Result<(), Error> {
        let function = self.handle.api.virDomainShutdown;
        self.handle.int(function, "shutdown")?;
        Ok(())
    }

    /// Pauses it.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn suspend(&self) -> Result<(), Error> {
        self.handle
            .int(self.handle.api.virDomainSuspend, "suspend")?;
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn resume(&self) -> Result<(), Error> {
        self.handle.int(self.handle.api.virDomainResume, "resume")?;
        Ok(())
    }

    /// Removes its definition.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn undefine(&self, what: UndefineFlags) -> Result<(), Error> {
        let function = self.handle.api.virDomainUndefineFlags;
        self.handle.flags(function, what.bits(), "undefine")?;
        Ok(())
    }

    /// Ends libvirt's own job on it.
    ///
    /// # Errors
    /// There is none.
    pub fn abort_job(&self) -> Result<(), Error> {
        let function = self.handle.api.virDomainAbortJob;
        self.handle.int(function, "abort a job")?;
        Ok(())
    }

    /// Whether it starts with the host.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn autostart(&self) -> Result<bool, Error> {
        let function = self.handle.api.virDomainGetAutostart;
        Ok(self.handle.get_int(function, "autostart")? == 1)
    }

    /// Sets whether it starts with the host.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn set_autostart(&self, on: bool) -> Result<(), Error> {
        let function = self.handle.api.virDomainSetAutostart;
        self.handle.set_int(function, i32::from(on), "autostart")
    }

    /// Freezes all its file systems by the guest agent; returns how many.
    ///
    /// # Errors
    /// No agent answers; [`Error::Refused`].
    pub fn freeze(&self) -> Result<u32, Error> {
        self.handle.freeze(true)
    }

    /// Thaws all its file systems.
    ///
    /// # Errors
    /// No agent answers; [`Error::Refused`].
    pub fn thaw(&self) -> Result<u32, Error> {
        self.handle.freeze(false)
    }

    /// Asks the guest agent (JSON), waiting `timeout_s` seconds.
    ///
    /// # Errors
    /// No agent answers; [`Error::Refused`].
    pub fn agent_command(&self, command: &str, timeout_s: i32) -> Result<String, Error> {
        self.handle.agent(command, timeout_s)
    }

    /// Runs a QMP command (JSON) on its QEMU, handing `files` over. libvirt waits for the answer,
    /// and marks the domain as tainted (`custom-monitor`).
    ///
    /// # Errors
    /// [`Error::Refused`] where it could not be run; QEMU's refusal is in the answer.
    pub fn monitor_command(
        &self,
        command: &str,
        files: &[BorrowedFd<'_>],
    ) -> Result<MonitorAnswer, Error> {
        let (message, files) = self.handle.monitor(command, files)?;
        Ok(MonitorAnswer { message, files })
    }

    /// Follows events of its QEMU from now on; without a name, all of them.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn follow_monitor(&self, event: Option<&str>) -> Result<Subscription<MonitorEvent>, Error> {
        Subscription::monitor(&self.connection.handle, &self.handle, event)
    }

    fn all_xml(
        &self,
        list: ListFn,
        free: FreeFn,
        xml: XmlFn,
        call: &'static str,
    ) -> Result<Vec<String>, Error> {
        let found = Handle::list(&self.handle, list, free, call)?;
        found.iter().map(|one| one.xml(xml, 0, call)).collect()
    }

    /// XML of all its snapshots, without passwords.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn snapshots(&self) -> Result<Vec<String>, Error> {
        let api = self.handle.api;
        self.all_xml(
            api.virDomainListAllSnapshots,
            api.virDomainSnapshotFree,
            api.virDomainSnapshotGetXMLDesc,
            "snapshots",
        )
    }

    /// The name of its current snapshot, if it has one.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn current_snapshot(&self) -> Result<Option<String>, Error> {
        let api = self.handle.api;
        let (list, free) = (api.virDomainListAllSnapshots, api.virDomainSnapshotFree);
        for one in Handle::list(&self.handle, list, free, "snapshots")? {
            if one.flags(api.virDomainSnapshotIsCurrent, 0, "current snapshot")? == 1 {
                return Ok(Some(one.name(api.virDomainSnapshotGetName)));
            }
        }
        Ok(None)
    }

    /// XML of all its checkpoints, without passwords.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn checkpoints(&self) -> Result<Vec<String>, Error> {
        let api = self.handle.api;
        self.all_xml(
            api.virDomainListAllCheckpoints,
            api.virDomainCheckpointFree,
            api.virDomainCheckpointGetXMLDesc,
            "checkpoints",
        )
    }

    /// Notes a snapshot again that libvirt has forgotten, as the current one or not; nothing is
    /// taken.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn redefine_snapshot(&self, xml: &str, current: bool) -> Result<(), Error> {
        const REDEFINE: u32 = 1;
        const CURRENT: u32 = 2;
        let api = self.handle.api;
        let (function, free) = (api.virDomainSnapshotCreateXML, api.virDomainSnapshotFree);
        let flags = if current {
            REDEFINE | CURRENT
        } else {
            REDEFINE
        };
        Handle::by_text_flags(
            &self.handle,
            function,
            xml,
            flags,
            free,
            "redefine a snapshot",
        )?;
        Ok(())
    }

    /// Notes a checkpoint again that libvirt has forgotten; no bitmap is made.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn redefine_checkpoint(&self, xml: &str) -> Result<(), Error> {
        let api = self.handle.api;
        let (function, free) = (
            api.virDomainCheckpointCreateXML,
            api.virDomainCheckpointFree,
        );
        // VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        Handle::by_text_flags(
            &self.handle,
            function,
            xml,
            1,
            free,
            "redefine a checkpoint",
        )?;
        Ok(())
    }
}
