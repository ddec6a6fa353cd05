//! Volumes of a storage pool.

use std::sync::Arc;

use crate::error::Error;
use crate::ffi::Handle;

/// A volume.
#[derive(Debug)]
pub struct Volume {
    handle: Arc<Handle>,
}

impl Volume {
    pub(crate) fn list(pool: &Arc<Handle>) -> Result<Vec<Volume>, Error> {
        let api = pool.api;
        let (function, free) = (api.virStoragePoolListAllVolumes, api.virStorageVolFree);
        let found = Handle::list(pool, function, free, "list volumes")?;
        let volume = |handle| Volume {
            handle: Arc::new(handle),
        };
        Ok(found.into_iter().map(volume).collect())
    }

    pub(crate) fn find(pool: &Arc<Handle>, name: &str) -> Result<Volume, Error> {
        let api = pool.api;
        let (function, free) = (api.virStorageVolLookupByName, api.virStorageVolFree);
        let handle = Arc::new(Handle::by_text(pool, function, name, free, "volume")?);
        Ok(Volume { handle })
    }

    pub(crate) fn create(pool: &Arc<Handle>, xml: &str) -> Result<Volume, Error> {
        let api = pool.api;
        let (function, free) = (api.virStorageVolCreateXML, api.virStorageVolFree);
        let made = Handle::by_text_flags(pool, function, xml, 0, free, "create a volume")?;
        let handle = Arc::new(made);
        Ok(Volume { handle })
    }

    /// Its name in the pool.
    #[must_use]
    pub fn name(&self) -> String {
        self.handle.name(self.handle.api.virStorageVolGetName)
    }

    /// Its path on the host.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn path(&self) -> Result<String, Error> {
        let function = self.handle.api.virStorageVolGetPath;
        self.handle.text(function, "path of a volume")
    }

    /// Its description.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn xml(&self) -> Result<String, Error> {
        let function = self.handle.api.virStorageVolGetXMLDesc;
        self.handle.xml(function, 0, "XML of a volume")
    }

    /// Deletes it and what it holds.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn delete(&self) -> Result<(), Error> {
        let function = self.handle.api.virStorageVolDelete;
        self.handle
            .flags(function, 0, "delete a volume")
            .map(|_| ())
    }
}
