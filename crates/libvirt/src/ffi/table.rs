//! The table of libvirt's functions, and how it is loaded.
//!
//! Signatures: `libvirt/libvirt-*.h` and `libvirt-qemu.h` (LGPL; nothing of them is in the binary).

use std::ffi::{CStr, c_char, c_int, c_longlong, c_uchar, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::Raw;
use crate::error::Error;

/// Gives back a reference.
pub(crate) type FreeFn = unsafe extern "C" fn(Raw) -> c_int;
/// A question or an order without arguments; negative means failed.
pub(crate) type IntFn = unsafe extern "C" fn(Raw) -> c_int;
/// The same with flags.
pub(crate) type FlagsFn = unsafe extern "C" fn(Raw, c_uint) -> c_int;
/// A text that belongs to the object.
pub(crate) type NameFn = unsafe extern "C" fn(Raw) -> *const c_char;
/// A text that is the caller's.
pub(crate) type TextFn = unsafe extern "C" fn(Raw) -> *mut c_char;
/// The same with flags.
pub(crate) type XmlFn = unsafe extern "C" fn(Raw, c_uint) -> *mut c_char;
/// A uuid, written to 37 bytes.
pub(crate) type UuidFn = unsafe extern "C" fn(Raw, *mut c_char) -> c_int;
/// All objects of a parent, in an array that is the caller's.
pub(crate) type ListFn = unsafe extern "C" fn(Raw, *mut *mut Raw, c_uint) -> c_int;
/// An object of a parent, by a text.
pub(crate) type ByTextFn = unsafe extern "C" fn(Raw, *const c_char) -> Raw;
/// The same with flags.
pub(crate) type ByTextFlagsFn = unsafe extern "C" fn(Raw, *const c_char, c_uint) -> Raw;
/// Writes a number.
pub(crate) type GetIntFn = unsafe extern "C" fn(Raw, *mut c_int) -> c_int;
/// Takes a number.
pub(crate) type SetIntFn = unsafe extern "C" fn(Raw, c_int) -> c_int;
type MonitorEventFn =
    unsafe extern "C" fn(Raw, Raw, *const c_char, c_longlong, c_uint, *const c_char, *mut c_void);
type ReleaseFn = unsafe extern "C" fn(*mut c_void);

/// Declares the table of functions, and finds each in the libraries.
macro_rules! functions {
    ($($library:ident { $($name:ident: $kind:ty;)* })*) => {
        /// libvirt's functions by their own names.
        #[allow(non_snake_case)]
        pub(crate) struct Api { $($(pub(crate) $name: $kind,)*)* }

        impl Api {
            fn load() -> Result<Api, libloading::Error> {
                // The second library takes the first one's symbols.
                let core = open(c"libvirt.so.0")?;
                let qemu = open(c"libvirt-qemu.so.0")?;
                let api = Api { $($(
                    // SAFETY: the type is the one that libvirt's header gives for this name, and
                    // the library is never unloaded (see below).
                    $name: *unsafe { functions!(@lib $library core qemu).get::<$kind>(
                        concat!(stringify!($name), "\0").as_bytes()) }?,
                )*)* };
                // Function pointers outlive this call.
                std::mem::forget((core, qemu));
                Ok(api)
            }
        }
    };
    (@lib core $core:ident $qemu:ident) => { $core };
    (@lib qemu $core:ident $qemu:ident) => { $qemu };
}

fn open(name: &CStr) -> Result<Library, libloading::Error> {
    // SAFETY: libvirt's initialisers set up locks and thread-local data of its own only.
    unsafe {
        Library::open(
            Some(name.to_string_lossy().as_ref()),
            RTLD_NOW | RTLD_GLOBAL,
        )
    }
}

functions! {
    core {
    virInitialize: unsafe extern "C" fn() -> c_int;
    virSetErrorFunc: unsafe extern "C" fn(*mut c_void, Option<unsafe extern "C" fn(*mut c_void, *mut c_void)>);
    virGetLastErrorCode: unsafe extern "C" fn() -> c_int;
    virGetLastErrorDomain: unsafe extern "C" fn() -> c_int;
    virGetLastErrorMessage: unsafe extern "C" fn() -> *const c_char;
    virEventRegisterDefaultImpl: unsafe extern "C" fn() -> c_int;
    virEventRunDefaultImpl: unsafe extern "C" fn() -> c_int;
    virConnectOpen: unsafe extern "C" fn(*const c_char) -> Raw;
    virConnectClose: FreeFn;
    virConnectIsAlive: IntFn;
    virConnectSetKeepAlive: unsafe extern "C" fn(Raw, c_int, c_uint) -> c_int;
    virConnectGetHostname: TextFn;
    virConnectGetURI: TextFn;
    virConnectGetCapabilities: TextFn;
    virConnectGetSysinfo: XmlFn;
    virConnectGetLibVersion: unsafe extern "C" fn(Raw, *mut std::ffi::c_ulong) -> c_int;

    virConnectListAllDomains: ListFn;
    virDomainLookupByName: ByTextFn;
    virDomainLookupByUUIDString: ByTextFn;
    virDomainFree: FreeFn;
    virDomainGetName: NameFn;
    virDomainGetUUIDString: UuidFn;
    virDomainGetXMLDesc: XmlFn;
    virDomainGetState: unsafe extern "C" fn(Raw, *mut c_int, *mut c_int, c_uint) -> c_int;
    virDomainIsPersistent: IntFn;
    virDomainDefineXMLFlags: ByTextFlagsFn;
    virDomainCreateXML: ByTextFlagsFn;
    virDomainCreateWithFlags: FlagsFn;
    virDomainUndefineFlags: FlagsFn;
    virDomainDestroyFlags: FlagsFn;
    virDomainShutdown: IntFn;
    virDomainSuspend: IntFn;
    virDomainResume: IntFn;
    virDomainAbortJob: IntFn;
    virDomainGetAutostart: GetIntFn;
    virDomainSetAutostart: SetIntFn;
    virDomainRestoreFlags: unsafe extern "C" fn(Raw, *const c_char, *const c_char, c_uint) -> c_int;
    virDomainFSFreeze: unsafe extern "C" fn(Raw, *mut *const c_char, c_uint, c_uint) -> c_int;
    virDomainFSThaw: unsafe extern "C" fn(Raw, *mut *const c_char, c_uint, c_uint) -> c_int;
    virDomainListAllSnapshots: ListFn;
    virDomainSnapshotFree: FreeFn;
    virDomainSnapshotGetName: NameFn;
    virDomainSnapshotIsCurrent: FlagsFn;
    virDomainSnapshotGetXMLDesc: XmlFn;
    virDomainSnapshotCreateXML: ByTextFlagsFn;
    virDomainListAllCheckpoints: ListFn;
    virDomainCheckpointFree: FreeFn;
    virDomainCheckpointGetXMLDesc: XmlFn;
    virDomainCheckpointCreateXML: ByTextFlagsFn;
    virConnectDomainEventRegisterAny: unsafe extern "C" fn(Raw, Raw, c_int, *const c_void, *mut c_void, Option<ReleaseFn>) -> c_int;
    virConnectDomainEventDeregisterAny: SetIntFn;

    virConnectListAllNetworks: ListFn;
    virNetworkLookupByName: ByTextFn;
    virNetworkFree: FreeFn;
    virNetworkGetName: NameFn;
    virNetworkGetUUIDString: UuidFn;
    virNetworkGetXMLDesc: XmlFn;
    virNetworkCreateXML: ByTextFn;
    virNetworkDefineXML: ByTextFn;
    virNetworkUndefine: IntFn;
    virNetworkCreate: IntFn;
    virNetworkDestroy: IntFn;
    virNetworkIsActive: IntFn;
    virNetworkIsPersistent: IntFn;
    virNetworkGetAutostart: GetIntFn;
    virNetworkSetAutostart: SetIntFn;

    virConnectListAllStoragePools: ListFn;
    virStoragePoolLookupByName: ByTextFn;
    virStoragePoolFree: FreeFn;
    virStoragePoolGetName: NameFn;
    virStoragePoolGetUUIDString: UuidFn;
    virStoragePoolGetXMLDesc: XmlFn;
    virStoragePoolCreateXML: ByTextFlagsFn;
    virStoragePoolDefineXML: ByTextFlagsFn;
    virStoragePoolUndefine: IntFn;
    virStoragePoolCreate: FlagsFn;
    virStoragePoolDestroy: IntFn;
    virStoragePoolBuild: FlagsFn;
    virStoragePoolRefresh: FlagsFn;
    virStoragePoolIsActive: IntFn;
    virStoragePoolIsPersistent: IntFn;
    virStoragePoolGetAutostart: GetIntFn;
    virStoragePoolSetAutostart: SetIntFn;
    virStoragePoolListAllVolumes: ListFn;
    virStorageVolFree: FreeFn;
    virStorageVolGetName: NameFn;
    virStorageVolGetPath: TextFn;
    virStorageVolGetXMLDesc: XmlFn;
    virStorageVolCreateXML: ByTextFlagsFn;
    virStorageVolLookupByName: ByTextFn;
    virStorageVolDelete: FlagsFn;

    virConnectListAllSecrets: ListFn;
    virSecretLookupByUUIDString: ByTextFn;
    virSecretFree: FreeFn;
    virSecretGetUUIDString: UuidFn;
    virSecretGetXMLDesc: XmlFn;
    virSecretDefineXML: ByTextFlagsFn;
    virSecretUndefine: IntFn;
    virSecretGetValue: unsafe extern "C" fn(Raw, *mut usize, c_uint) -> *mut c_uchar;
    virSecretSetValue: unsafe extern "C" fn(Raw, *const c_uchar, usize, c_uint) -> c_int;

    virConnectListAllNWFilters: ListFn;
    virNWFilterLookupByName: ByTextFn;
    virNWFilterFree: FreeFn;
    virNWFilterGetName: NameFn;
    virNWFilterGetUUIDString: UuidFn;
    virNWFilterGetXMLDesc: XmlFn;
    virNWFilterDefineXML: ByTextFn;
    virNWFilterUndefine: IntFn;

    virConnectListAllNodeDevices: ListFn;
    virNodeDeviceLookupByName: ByTextFn;
    virNodeDeviceFree: FreeFn;
    virNodeDeviceGetName: NameFn;
    virNodeDeviceGetXMLDesc: XmlFn;
    virNodeDeviceDefineXML: ByTextFlagsFn;
    virNodeDeviceUndefine: FlagsFn;
    virNodeDeviceCreate: FlagsFn;
    virNodeDeviceDestroy: IntFn;
    virNodeDeviceIsActive: IntFn;
    virNodeDeviceGetAutostart: GetIntFn;
    virNodeDeviceSetAutostart: SetIntFn;

    virConnectListAllInterfaces: ListFn;
    virInterfaceLookupByName: ByTextFn;
    virInterfaceFree: FreeFn;
    virInterfaceGetName: NameFn;
    virInterfaceGetXMLDesc: XmlFn;
    virInterfaceDefineXML: ByTextFlagsFn;
    virInterfaceUndefine: IntFn;
    virInterfaceCreate: FlagsFn;
    virInterfaceDestroy: FlagsFn;
    virInterfaceIsActive: IntFn;
    }

    qemu {
    virDomainQemuMonitorCommandWithFiles: unsafe extern "C" fn(Raw, *const c_char, c_uint, *mut c_int, *mut c_uint, *mut *mut c_int, *mut *mut c_char, c_uint) -> c_int;
    virDomainQemuAgentCommand: unsafe extern "C" fn(Raw, *const c_char, c_int, c_uint) -> *mut c_char;
    virConnectDomainQemuMonitorEventRegister: unsafe extern "C" fn(Raw, Raw, *const c_char, MonitorEventFn, *mut c_void, Option<ReleaseFn>, c_uint) -> c_int;
    virConnectDomainQemuMonitorEventDeregister: SetIntFn;
    }
}

/// libvirt's functions, loaded at the first use, with its event loop on a thread of its own.
///
/// # Errors
/// [`Error::Library`] where libvirt is not installed; asked again, it is looked for again.
pub(crate) fn api() -> Result<&'static Api, Error> {
    static API: OnceLock<Api> = OnceLock::new();
    static LOADING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = LOADING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(api) = API.get() {
        return Ok(api);
    }
    let api = Api::load().map_err(Error::Library)?;
    // SAFETY: libvirt allows these once, before any connection. The handler of errors takes two
    // pointers and uses neither.
    unsafe {
        (api.virInitialize)();
        (api.virSetErrorFunc)(null_mut(), Some(say_nothing));
        (api.virEventRegisterDefaultImpl)();
    }
    let run = api.virEventRunDefaultImpl;
    let looping = std::thread::Builder::new().name("libvirt-events".into());
    let looping = looping.spawn(move || {
        // SAFETY: the implementation was registered above; one thread runs it, for good.
        while unsafe { run() } == 0 {}
    });
    if let Err(error) = looping {
        tracing::warn!(%error, "libvirt's events are not followed");
    }
    Ok(API.get_or_init(|| api))
}

/// In place of libvirt's own printing to stderr: errors are values here.
unsafe extern "C" fn say_nothing(_: *mut c_void, _: *mut c_void) {}
