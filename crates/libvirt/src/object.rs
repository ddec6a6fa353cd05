//! Objects that are not guests: networks, storage pools, secrets, filters, devices, interfaces.
//!
//! libvirt has a set of functions of the same shapes for each kind; a table tells which.

use std::sync::Arc;

use crate::error::Error;
use crate::ffi::{
    Api, ByTextFlagsFn, ByTextFn, FlagsFn, FreeFn, GetIntFn, Handle, IntFn, ListFn, NameFn,
    SetIntFn, UuidFn, XmlFn,
};
use crate::volume::Volume;

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A virtual network.
    Network,
    /// A storage pool.
    StoragePool,
    /// A secret; its value is apart from its XML.
    Secret,
    /// A network filter.
    NwFilter,
    /// A device of the host.
    NodeDevice,
    /// A network interface of the host.
    Interface,
}

/// A function that may take flags.
enum Order {
    Plain(IntFn),
    Flags(FlagsFn),
}

enum Define {
    Plain(ByTextFn),
    Flags(ByTextFlagsFn),
}

/// The functions of a kind.
struct Table {
    list: ListFn,
    free: FreeFn,
    find: ByTextFn,
    name: Option<NameFn>,
    uuid: Option<UuidFn>,
    xml: XmlFn,
    /// Flag that asks for the definition instead of what runs.
    inactive: u32,
    define: Define,
    /// Whether one has a definition that outlives it, and what starts one without.
    transient: Option<(IntFn, Define)>,
    undefine: Order,
    start: Option<Order>,
    stop: Option<Order>,
    is_active: Option<IntFn>,
    autostart: Option<(GetIntFn, SetIntFn)>,
}

impl Kind {
    /// All kinds, in the order in which they can be defined again.
    pub const ALL: [Kind; 6] = [
        Kind::Secret,
        Kind::NodeDevice,
        Kind::Interface,
        Kind::NwFilter,
        Kind::Network,
        Kind::StoragePool,
    ];

    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Network => "network",
            Kind::StoragePool => "storage pool",
            Kind::Secret => "secret",
            Kind::NwFilter => "network filter",
            Kind::NodeDevice => "host device",
            Kind::Interface => "host interface",
        }
    }

    fn table(self, api: &Api) -> Table {
        match self {
            Kind::Network => network(api),
            Kind::StoragePool => pool(api),
            Kind::Secret => secret(api),
            Kind::NwFilter => nwfilter(api),
            Kind::NodeDevice => node_device(api),
            Kind::Interface => interface(api),
        }
    }
}

fn network(api: &Api) -> Table {
    Table {
        list: api.virConnectListAllNetworks,
        free: api.virNetworkFree,
        find: api.virNetworkLookupByName,
        name: Some(api.virNetworkGetName),
        uuid: Some(api.virNetworkGetUUIDString),
        xml: api.virNetworkGetXMLDesc,
        inactive: 1,
        define: Define::Plain(api.virNetworkDefineXML),
        transient: Some((
            api.virNetworkIsPersistent,
            Define::Plain(api.virNetworkCreateXML),
        )),
        undefine: Order::Plain(api.virNetworkUndefine),
        start: Some(Order::Plain(api.virNetworkCreate)),
        stop: Some(Order::Plain(api.virNetworkDestroy)),
        is_active: Some(api.virNetworkIsActive),
        autostart: Some((api.virNetworkGetAutostart, api.virNetworkSetAutostart)),
    }
}

fn pool(api: &Api) -> Table {
    Table {
        list: api.virConnectListAllStoragePools,
        free: api.virStoragePoolFree,
        find: api.virStoragePoolLookupByName,
        name: Some(api.virStoragePoolGetName),
        uuid: Some(api.virStoragePoolGetUUIDString),
        xml: api.virStoragePoolGetXMLDesc,
        inactive: 1,
        define: Define::Flags(api.virStoragePoolDefineXML),
        transient: Some((
            api.virStoragePoolIsPersistent,
            Define::Flags(api.virStoragePoolCreateXML),
        )),
        undefine: Order::Plain(api.virStoragePoolUndefine),
        start: Some(Order::Flags(api.virStoragePoolCreate)),
        stop: Some(Order::Plain(api.virStoragePoolDestroy)),
        is_active: Some(api.virStoragePoolIsActive),
        autostart: Some((
            api.virStoragePoolGetAutostart,
            api.virStoragePoolSetAutostart,
        )),
    }
}

fn secret(api: &Api) -> Table {
    Table {
        list: api.virConnectListAllSecrets,
        free: api.virSecretFree,
        find: api.virSecretLookupByUUIDString,
        name: None,
        uuid: Some(api.virSecretGetUUIDString),
        xml: api.virSecretGetXMLDesc,
        inactive: 0,
        define: Define::Flags(api.virSecretDefineXML),
        transient: None,
        undefine: Order::Plain(api.virSecretUndefine),
        start: None,
        stop: None,
        is_active: None,
        autostart: None,
    }
}

fn nwfilter(api: &Api) -> Table {
    Table {
        list: api.virConnectListAllNWFilters,
        free: api.virNWFilterFree,
        find: api.virNWFilterLookupByName,
        name: Some(api.virNWFilterGetName),
        uuid: Some(api.virNWFilterGetUUIDString),
        xml: api.virNWFilterGetXMLDesc,
        inactive: 0,
        define: Define::Plain(api.virNWFilterDefineXML),
        transient: None,
        undefine: Order::Plain(api.virNWFilterUndefine),
        start: None,
        stop: None,
        is_active: None,
        autostart: None,
    }
}

fn node_device(api: &Api) -> Table {
    Table {
        list: api.virConnectListAllNodeDevices,
        free: api.virNodeDeviceFree,
        find: api.virNodeDeviceLookupByName,
        name: Some(api.virNodeDeviceGetName),
        uuid: None,
        xml: api.virNodeDeviceGetXMLDesc,
        // VIR_NODE_DEVICE_XML_INACTIVE is newer than the releases we serve, and an error there.
        inactive: 0,
        define: Define::Flags(api.virNodeDeviceDefineXML),
        transient: None,
        undefine: Order::Flags(api.virNodeDeviceUndefine),
        start: Some(Order::Flags(api.virNodeDeviceCreate)),
        stop: Some(Order::Plain(api.virNodeDeviceDestroy)),
        is_active: Some(api.virNodeDeviceIsActive),
        autostart: Some((api.virNodeDeviceGetAutostart, api.virNodeDeviceSetAutostart)),
    }
}

fn interface(api: &Api) -> Table {
    Table {
        list: api.virConnectListAllInterfaces,
        free: api.virInterfaceFree,
        find: api.virInterfaceLookupByName,
        name: Some(api.virInterfaceGetName),
        uuid: None,
        xml: api.virInterfaceGetXMLDesc,
        // The backend without definitions (udev) knows no flags.
        inactive: 0,
        define: Define::Flags(api.virInterfaceDefineXML),
        transient: None,
        undefine: Order::Plain(api.virInterfaceUndefine),
        start: Some(Order::Flags(api.virInterfaceCreate)),
        stop: Some(Order::Flags(api.virInterfaceDestroy)),
        is_active: Some(api.virInterfaceIsActive),
        autostart: None,
    }
}

/// An object of some kind.
#[derive(Debug)]
pub struct Object {
    kind: Kind,
    handle: Arc<Handle>,
}

impl Object {
    fn new(kind: Kind, handle: Handle) -> Object {
        let handle = Arc::new(handle);
        Object { kind, handle }
    }

    pub(crate) fn list(connection: &Arc<Handle>, kind: Kind) -> Result<Vec<Object>, Error> {
        let table = kind.table(connection.api);
        let found = Handle::list(connection, table.list, table.free, "list")?;
        Ok(found.into_iter().map(|h| Object::new(kind, h)).collect())
    }

    pub(crate) fn find(connection: &Arc<Handle>, kind: Kind, name: &str) -> Result<Object, Error> {
        let table = kind.table(connection.api);
        let found = Handle::by_text(connection, table.find, name, table.free, "find")?;
        Ok(Object::new(kind, found))
    }

    pub(crate) fn define(connection: &Arc<Handle>, kind: Kind, xml: &str) -> Result<Object, Error> {
        let table = kind.table(connection.api);
        Self::make(connection, kind, (&table.define, table.free), xml, "define")
    }

    pub(crate) fn start_transient(
        connection: &Arc<Handle>,
        kind: Kind,
        xml: &str,
    ) -> Result<Object, Error> {
        const START: &str = "start without a definition";
        let table = kind.table(connection.api);
        let (_, function) = table.transient.ok_or(Error::Unsupported {
            operation: START,
            kind: kind.as_str(),
        })?;
        Self::make(connection, kind, (&function, table.free), xml, START)
    }

    fn make(
        connection: &Arc<Handle>,
        kind: Kind,
        (function, free): (&Define, FreeFn),
        xml: &str,
        call: &'static str,
    ) -> Result<Object, Error> {
        let made = match function {
            Define::Plain(f) => Handle::by_text(connection, *f, xml, free, call)?,
            Define::Flags(f) => Handle::by_text_flags(connection, *f, xml, 0, free, call)?,
        };
        Ok(Object::new(kind, made))
    }

    fn table(&self) -> Table {
        self.kind.table(self.handle.api)
    }

    fn order(&self, order: Option<Order>, operation: &'static str) -> Result<(), Error> {
        match order {
            Some(Order::Plain(f)) => self.handle.int(f, operation)?,
            Some(Order::Flags(f)) => self.handle.flags(f, 0, operation)?,
            None => return Err(self.unsupported(operation)),
        };
        Ok(())
    }

    fn unsupported(&self, operation: &'static str) -> Error {
        Error::Unsupported {
            operation,
            kind: self.kind.as_str(),
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name; a secret's is its uuid.
    ///
    /// # Errors
    /// [`Error::Refused`], as all calls here.
    pub fn name(&self) -> Result<String, Error> {
        match self.table().name {
            Some(function) => Ok(self.handle.name(function)),
            None => self.uuid().map(Option::unwrap_or_default),
        }
    }

    /// Its uuid, if its kind has them.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn uuid(&self) -> Result<Option<String>, Error> {
        let uuid = self.table().uuid;
        uuid.map(|f| self.handle.uuid(f, "uuid")).transpose()
    }

    /// Its definition.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn xml(&self) -> Result<String, Error> {
        let table = self.table();
        self.handle.xml(table.xml, table.inactive, "XML")
    }

    /// What runs, with what was decided at its start.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn live_xml(&self) -> Result<String, Error> {
        self.handle.xml(self.table().xml, 0, "XML")
    }

    /// Whether it is started; what cannot be started counts as active.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn is_active(&self) -> Result<bool, Error> {
        match self.table().is_active {
            Some(function) => Ok(self.handle.int(function, "active")? == 1),
            None => Ok(true),
        }
    }

    /// Whether it has a definition that outlives it.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn is_persistent(&self) -> Result<bool, Error> {
        match self.table().transient {
            Some((function, _)) => Ok(self.handle.int(function, "persistent")? == 1),
            None => Ok(true),
        }
    }

    /// Whether it starts with the host.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Refused`].
    pub fn autostart(&self) -> Result<bool, Error> {
        let (get, _) = self
            .table()
            .autostart
            .ok_or_else(|| self.unsupported("autostart"))?;
        Ok(self.handle.get_int(get, "autostart")? == 1)
    }

    /// Sets whether it starts with the host.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Refused`].
    pub fn set_autostart(&self, on: bool) -> Result<(), Error> {
        let (_, set) = self
            .table()
            .autostart
            .ok_or_else(|| self.unsupported("autostart"))?;
        self.handle.set_int(set, i32::from(on), "autostart")
    }

    /// Starts it (libvirt's "create").
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Refused`].
    pub fn start(&self) -> Result<(), Error> {
        self.order(self.table().start, "start")
    }

    /// Stops it (libvirt's "destroy"); its definition and data stay.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Refused`].
    pub fn stop(&self) -> Result<(), Error> {
        self.order(self.table().stop, "stop")
    }

    /// Removes its definition; data of a pool stays.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn undefine(&self) -> Result<(), Error> {
        self.order(Some(self.table().undefine), "undefine")
    }

    fn only(&self, kind: Kind, operation: &'static str) -> Result<&Arc<Handle>, Error> {
        match self.kind == kind {
            true => Ok(&self.handle),
            false => Err(self.unsupported(operation)),
        }
    }

    /// A secret's value.
    ///
    /// # Errors
    /// It has none, or it is private; [`Error::Unsupported`] of other kinds.
    pub fn secret_value(&self) -> Result<Vec<u8>, Error> {
        self.only(Kind::Secret, "read the value of")?.secret_value()
    }

    /// Sets a secret's value.
    ///
    /// # Errors
    /// [`Error::Unsupported`] of other kinds, [`Error::Refused`].
    pub fn set_secret_value(&self, value: &[u8]) -> Result<(), Error> {
        self.only(Kind::Secret, "set the value of")?
            .set_secret_value(value)
    }

    /// Makes what a pool needs: its folder, its volume group…
    ///
    /// # Errors
    /// [`Error::Unsupported`] of other kinds, [`Error::Refused`].
    pub fn build_pool(&self) -> Result<(), Error> {
        let pool = self.only(Kind::StoragePool, "build")?;
        pool.flags(pool.api.virStoragePoolBuild, 0, "build")?;
        Ok(())
    }

    /// Looks for volumes of a pool that others made.
    ///
    /// # Errors
    /// [`Error::Unsupported`] of other kinds, [`Error::Refused`].
    pub fn refresh_pool(&self) -> Result<(), Error> {
        let pool = self.only(Kind::StoragePool, "refresh")?;
        pool.flags(pool.api.virStoragePoolRefresh, 0, "refresh")?;
        Ok(())
    }

    /// A pool's volumes; the pool must be active.
    ///
    /// # Errors
    /// [`Error::Unsupported`] of other kinds, [`Error::Refused`].
    pub fn volumes(&self) -> Result<Vec<Volume>, Error> {
        Volume::list(self.only(Kind::StoragePool, "list volumes of")?)
    }

    /// The volume called `name`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] of other kinds; there is none ([`Error::is_missing`]).
    pub fn volume(&self, name: &str) -> Result<Volume, Error> {
        Volume::find(self.only(Kind::StoragePool, "find a volume of")?, name)
    }

    /// Makes a volume in a pool.
    ///
    /// # Errors
    /// [`Error::Unsupported`] of other kinds, [`Error::Refused`].
    pub fn create_volume(&self, xml: &str) -> Result<Volume, Error> {
        Volume::create(self.only(Kind::StoragePool, "make a volume in")?, xml)
    }
}
