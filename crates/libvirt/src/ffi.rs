//! libvirt's C functions, found at run time. All `unsafe` of this crate is in this module;
//! outside it the types are safe.
//!
//! Three things make the calls sound: the two libraries are never unloaded; every handle is a
//! [`Handle`], which is made only from a pointer libvirt has just given away, keeps its connection,
//! and gives the reference back once; and every text is copied before it is given back.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_longlong, c_uint, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use crate::error::{Error, ErrorCode};

mod table;

pub(crate) use table::{
    Api, ByTextFlagsFn, ByTextFn, FlagsFn, FreeFn, GetIntFn, IntFn, ListFn, NameFn, SetIntFn,
    TextFn, UuidFn, XmlFn, api,
};

/// A `virXxxPtr`.
pub(crate) type Raw = *mut c_void;

/// What libvirt said last in this thread.
fn last_error(api: &Api, call: &'static str) -> Error {
    // SAFETY: all three look at this thread's last error; the message stays until the next call
    // and is copied here.
    unsafe {
        let message = (api.virGetLastErrorMessage)();
        let message = if message.is_null() {
            "no reason given".to_owned()
        } else {
            CStr::from_ptr(message).to_string_lossy().into_owned()
        };
        Error::Refused {
            code: ErrorCode((api.virGetLastErrorCode)()),
            domain: (api.virGetLastErrorDomain)(),
            message,
            call,
        }
    }
}

/// A text as C has it.
fn c_text(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::ZeroByte)
}

/// A reference to an object of libvirt's, given back when it goes.
pub(crate) struct Handle {
    raw: Raw,
    free: FreeFn,
    pub(crate) api: &'static Api,
    /// What must outlive it; a connection has none.
    connection: Option<Arc<Handle>>,
}

// SAFETY: libvirt's objects are counted atomically and its functions may be called with them from
// any thread at once (libvirt's API documentation, "thread safety"); the error is per thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and it is given back here only.
        unsafe { (self.free)(self.raw) };
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

/// Opens a connection.
pub(crate) fn connect(uri: &str) -> Result<Arc<Handle>, Error> {
    let api = api()?;
    let uri = c_text(uri)?;
    // SAFETY: the text lives through the call.
    let raw = unsafe { (api.virConnectOpen)(uri.as_ptr()) };
    if raw.is_null() {
        return Err(last_error(api, "connect"));
    }
    let handle = Handle {
        raw,
        free: api.virConnectClose,
        api,
        connection: None,
    };
    // A server that is gone is noticed within 15 s. Local drivers know no keep-alive.
    // SAFETY: the connection is open.
    unsafe { (api.virConnectSetKeepAlive)(handle.raw, 5, 3) };
    Ok(Arc::new(handle))
}

impl Handle {
    fn fail<T>(&self, call: &'static str) -> Result<T, Error> {
        Err(last_error(self.api, call))
    }

    /// Takes a pointer that libvirt has just given away.
    fn adopt(this: &Arc<Handle>, raw: Raw, free: FreeFn) -> Handle {
        let connection = this.connection.as_ref().unwrap_or(this);
        Handle {
            raw,
            free,
            api: this.api,
            connection: Some(Arc::clone(connection)),
        }
    }

    fn checked(&self, answer: c_int, call: &'static str) -> Result<c_int, Error> {
        if answer < 0 {
            self.fail(call)
        } else {
            Ok(answer)
        }
    }

    /// Copies a text of the caller's and gives it back.
    fn take_text(&self, text: *mut c_char, call: &'static str) -> Result<String, Error> {
        if text.is_null() {
            return self.fail(call);
        }
        // SAFETY: libvirt gave a zero-terminated text away, allocated by the C library.
        let copy = unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned();
        // SAFETY: as above; freed once.
        unsafe { free(text.cast()) };
        Ok(copy)
    }

    /// Calls a function without arguments.
    pub(crate) fn int(&self, function: IntFn, call: &'static str) -> Result<c_int, Error> {
        // SAFETY: the handle is alive, and the function is of its kind (all callers are in this
        // crate and take both from one table).
        self.checked(unsafe { function(self.raw) }, call)
    }

    /// Calls a function with flags.
    pub(crate) fn flags(
        &self,
        function: FlagsFn,
        flags: u32,
        call: &'static str,
    ) -> Result<c_int, Error> {
        // SAFETY: as `int`.
        self.checked(unsafe { function(self.raw, flags) }, call)
    }

    /// Reads a number.
    pub(crate) fn get_int(&self, function: GetIntFn, call: &'static str) -> Result<c_int, Error> {
        let mut number = 0;
        // SAFETY: as `int`; the number lives through the call.
        self.checked(unsafe { function(self.raw, &raw mut number) }, call)?;
        Ok(number)
    }

    /// Sets a number.
    pub(crate) fn set_int(
        &self,
        function: SetIntFn,
        number: c_int,
        call: &'static str,
    ) -> Result<(), Error> {
        // SAFETY: as `int`.
        self.checked(unsafe { function(self.raw, number) }, call)?;
        Ok(())
    }

    /// The object's name.
    pub(crate) fn name(&self, function: NameFn) -> String {
        // SAFETY: as `int`.
        let name = unsafe { function(self.raw) };
        if name.is_null() {
            return String::new();
        }
        // SAFETY: the text belongs to the object, which is alive; it is copied.
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned()
    }

    /// The object's uuid.
    pub(crate) fn uuid(&self, function: UuidFn, call: &'static str) -> Result<String, Error> {
        let mut buffer = [0u8; 64];
        // SAFETY: as `int`; libvirt writes 37 bytes (VIR_UUID_STRING_BUFLEN).
        self.checked(
            unsafe { function(self.raw, buffer.as_mut_ptr().cast()) },
            call,
        )?;
        let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    /// A text without flags.
    pub(crate) fn text(&self, function: TextFn, call: &'static str) -> Result<String, Error> {
        // SAFETY: as `int`.
        let text = unsafe { function(self.raw) };
        self.take_text(text, call)
    }

    /// A text, mostly XML.
    pub(crate) fn xml(
        &self,
        function: XmlFn,
        flags: u32,
        call: &'static str,
    ) -> Result<String, Error> {
        // SAFETY: as `int`.
        let text = unsafe { function(self.raw, flags) };
        self.take_text(text, call)
    }

    /// An object of this one, by a text.
    pub(crate) fn by_text(
        this: &Arc<Handle>,
        function: ByTextFn,
        text: &str,
        free: FreeFn,
        call: &'static str,
    ) -> Result<Handle, Error> {
        let text = c_text(text)?;
        // SAFETY: as `int`; the text lives through the call.
        let raw = unsafe { function(this.raw, text.as_ptr()) };
        if raw.is_null() {
            return this.fail(call);
        }
        Ok(Handle::adopt(this, raw, free))
    }

    /// The same with flags.
    pub(crate) fn by_text_flags(
        this: &Arc<Handle>,
        function: ByTextFlagsFn,
        text: &str,
        flags: u32,
        free: FreeFn,
        call: &'static str,
    ) -> Result<Handle, Error> {
        let text = c_text(text)?;
        // SAFETY: as `by_text`.
        let raw = unsafe { function(this.raw, text.as_ptr(), flags) };
        if raw.is_null() {
            return this.fail(call);
        }
        Ok(Handle::adopt(this, raw, free))
    }

    /// All objects of this one.
    pub(crate) fn list(
        this: &Arc<Handle>,
        function: ListFn,
        release: FreeFn,
        call: &'static str,
    ) -> Result<Vec<Handle>, Error> {
        let mut array: *mut Raw = null_mut();
        // SAFETY: as `int`; the pointer to the array lives through the call.
        let count = this.checked(unsafe { function(this.raw, &raw mut array, 0) }, call)?;
        let count = usize::try_from(count).unwrap_or(0);
        let found = (0..count)
            // SAFETY: libvirt gave an array of `count` references away.
            .map(|at| Handle::adopt(this, unsafe { *array.add(at) }, release))
            .collect();
        // SAFETY: the array was allocated by the C library; its references are ours now.
        unsafe { free(array.cast()) };
        Ok(found)
    }

    /// A domain's state and its reason.
    pub(crate) fn domain_state(&self) -> Result<(i32, i32), Error> {
        let (mut state, mut reason) = (0, 0);
        let function = self.api.virDomainGetState;
        // SAFETY: as `int`; both numbers live through the call.
        let answer = unsafe { function(self.raw, &raw mut state, &raw mut reason, 0) };
        self.checked(answer, "state of a domain")?;
        Ok((state, reason))
    }

    /// A secret's value.
    pub(crate) fn secret_value(&self) -> Result<Vec<u8>, Error> {
        let mut size = 0usize;
        // SAFETY: as `int`; the size lives through the call.
        let value = unsafe { (self.api.virSecretGetValue)(self.raw, &raw mut size, 0) };
        if value.is_null() {
            return self.fail("value of a secret");
        }
        // SAFETY: libvirt gave `size` bytes away. They are wiped before they are given back.
        unsafe {
            let copy = std::slice::from_raw_parts(value, size).to_vec();
            for at in 0..size {
                value.add(at).write_volatile(0);
            }
            free(value.cast());
            Ok(copy)
        }
    }

    /// Sets a secret's value.
    pub(crate) fn set_secret_value(&self, value: &[u8]) -> Result<(), Error> {
        let function = self.api.virSecretSetValue;
        // SAFETY: as `int`; the bytes live through the call.
        let answer = unsafe { function(self.raw, value.as_ptr(), value.len(), 0) };
        self.checked(answer, "set a secret").map(|_| ())
    }

    /// Freezes or thaws file systems: all of them.
    pub(crate) fn freeze(&self, freeze: bool) -> Result<u32, Error> {
        let function = match freeze {
            true => self.api.virDomainFSFreeze,
            false => self.api.virDomainFSThaw,
        };
        // SAFETY: as `int`; no list means all file systems.
        let answer = unsafe { function(self.raw, null_mut(), 0, 0) };
        let count = self.checked(answer, if freeze { "freeze" } else { "thaw" })?;
        Ok(count.unsigned_abs())
    }

    /// Asks the guest agent; `timeout_s` counts from now.
    pub(crate) fn agent(&self, command: &str, timeout_s: i32) -> Result<String, Error> {
        let command = c_text(command)?;
        let function = self.api.virDomainQemuAgentCommand;
        // SAFETY: as `int`; the text lives through the call.
        let answer = unsafe { function(self.raw, command.as_ptr(), timeout_s, 0) };
        self.take_text(answer, "guest agent")
    }

    /// Restores a saved guest.
    pub(crate) fn restore(&self, from: &str, xml: Option<&str>, flags: u32) -> Result<(), Error> {
        let from = c_text(from)?;
        let xml = xml.map(c_text).transpose()?;
        let xml = xml.as_ref().map_or(null(), |xml| xml.as_ptr());
        let function = self.api.virDomainRestoreFlags;
        // SAFETY: as `int`; both texts live through the call.
        let answer = unsafe { function(self.raw, from.as_ptr(), xml, flags) };
        self.checked(answer, "restore").map(|_| ())
    }

    /// Runs a QMP command with files handed over; returns the answer and files that QEMU gave.
    pub(crate) fn monitor(
        &self,
        command: &str,
        files: &[BorrowedFd<'_>],
    ) -> Result<(String, Vec<File>), Error> {
        let command = c_text(command)?;
        let mut given: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let mut result: *mut c_char = null_mut();
        let mut taken: *mut c_int = null_mut();
        let mut taken_count: c_uint = 0;
        let count = c_uint::try_from(given.len()).unwrap_or(0);
        let function = self.api.virDomainQemuMonitorCommandWithFiles;
        // SAFETY: as `int`; `given` has `count` descriptors that stay open through the call, and
        // the three results live through it.
        let answer = unsafe {
            function(
                self.raw,
                command.as_ptr(),
                count,
                given.as_mut_ptr(),
                &raw mut taken_count,
                &raw mut taken,
                &raw mut result,
                0,
            )
        };
        self.checked(answer, "monitor command")?;
        let taken_count = if taken.is_null() {
            0
        } else {
            taken_count as usize
        };
        let received = (0..taken_count)
            // SAFETY: libvirt gave `taken_count` open descriptors away.
            .map(|at| File::from(unsafe { OwnedFd::from_raw_fd(*taken.add(at)) }))
            .collect();
        // SAFETY: the array was allocated by the C library; null is allowed.
        unsafe { free(taken.cast()) };
        Ok((self.take_text(result, "monitor command")?, received))
    }

    /// Calls `on_event` for events of QEMU's named `event` (all without) of `domain`, until the
    /// returned number is given to [`Handle::forget_monitor_events`]. `self` is the connection.
    pub(crate) fn on_monitor_event(
        &self,
        domain: &Handle,
        event: Option<&str>,
        on_event: MonitorEventHandler,
    ) -> Result<c_int, Error> {
        let event = event.map(c_text).transpose()?;
        let event = event.as_ref().map_or(null(), |event| event.as_ptr());
        let opaque = Box::into_raw(Box::new(on_event));
        let function = self.api.virConnectDomainQemuMonitorEventRegister;
        // SAFETY: the handler is a box of the type that both callbacks expect; libvirt gives it to
        // `drop_monitor_handler` once, when it forgets it.
        let id = unsafe {
            function(
                self.raw,
                domain.raw,
                event,
                tell_monitor_event,
                opaque.cast(),
                Some(drop_monitor_handler),
                0,
            )
        };
        if id < 0 {
            // SAFETY: libvirt does not keep what it refused.
            drop(unsafe { Box::from_raw(opaque) });
        }
        self.checked(id, "follow the monitor's events")
    }

    /// Ends what [`Handle::on_monitor_event`] began.
    pub(crate) fn forget_monitor_events(&self, id: c_int) {
        let function = self.api.virConnectDomainQemuMonitorEventDeregister;
        // SAFETY: as `int`; the number is one that libvirt gave.
        unsafe { function(self.raw, id) };
    }

    /// Calls `on_event` when a domain (any without one) is defined, started, stopped… `self` is
    /// the connection.
    pub(crate) fn on_lifecycle(&self, on_event: LifecycleHandler) -> Result<c_int, Error> {
        let opaque = Box::into_raw(Box::new(on_event));
        let function = self.api.virConnectDomainEventRegisterAny;
        // SAFETY: as `on_monitor_event`; event 0 (VIR_DOMAIN_EVENT_ID_LIFECYCLE) calls back with
        // the signature of `tell_lifecycle`.
        let id = unsafe {
            function(
                self.raw,
                null_mut(),
                0,
                tell_lifecycle as *const c_void,
                opaque.cast(),
                Some(drop_lifecycle_handler),
            )
        };
        if id < 0 {
            // SAFETY: libvirt does not keep what it refused.
            drop(unsafe { Box::from_raw(opaque) });
        }
        self.checked(id, "follow events")
    }

    /// Ends what [`Handle::on_lifecycle`] began.
    pub(crate) fn forget_lifecycle(&self, id: c_int) {
        let function = self.api.virConnectDomainEventDeregisterAny;
        // SAFETY: as `int`; the number is one that libvirt gave.
        unsafe { function(self.raw, id) };
    }

    /// The version of the server's libvirt: major·1,000,000 + minor·1,000 + release.
    pub(crate) fn version(&self) -> Result<u64, Error> {
        let mut version: std::ffi::c_ulong = 0;
        let function = self.api.virConnectGetLibVersion;
        // SAFETY: as `int`; the number lives through the call.
        self.checked(unsafe { function(self.raw, &raw mut version) }, "version")?;
        Ok(version)
    }
}

/// Takes name, seconds, microseconds and details of an event of QEMU's.
pub(crate) type MonitorEventHandler = Box<dyn Fn(&str, i64, u32, &str) + Send + Sync>;
/// Takes name, event and detail of a domain's lifecycle.
pub(crate) type LifecycleHandler = Box<dyn Fn(&str, i32, i32) + Send + Sync>;

unsafe extern "C" fn tell_monitor_event(
    _: Raw,
    _: Raw,
    event: *const c_char,
    seconds: c_longlong,
    micros: c_uint,
    details: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: `opaque` is the box that `on_monitor_event` gave, not yet dropped; the texts live
    // through the call. The handler only sends to a channel, so it does not panic.
    unsafe {
        let handler = &*opaque.cast::<MonitorEventHandler>();
        handler(&copied(event), seconds, micros, &copied(details));
    }
}

unsafe extern "C" fn drop_monitor_handler(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once for each box it was given.
    drop(unsafe { Box::from_raw(opaque.cast::<MonitorEventHandler>()) });
}

unsafe extern "C" fn tell_lifecycle(
    _: Raw,
    domain: Raw,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: as `tell_monitor_event`; libvirt holds the domain through the call.
    unsafe {
        let handler = &*opaque.cast::<LifecycleHandler>();
        if let Ok(api) = api() {
            handler(&copied((api.virDomainGetName)(domain)), event, detail);
        }
    }
    0
}

unsafe extern "C" fn drop_lifecycle_handler(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once for each box it was given.
    drop(unsafe { Box::from_raw(opaque.cast::<LifecycleHandler>()) });
}

/// A copy of a text that may be missing.
///
/// # Safety
/// `text` is null or a zero-terminated text that lives through the call.
unsafe fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

unsafe extern "C" {
    /// The C library's, which libvirt allocates with.
    fn free(memory: *mut c_void);
}
