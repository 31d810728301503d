//! Settings of the store: how large it may become, which others are looked into, who may take over whose work.

use std::time::Duration;

use cista_images::store::Settings;

use super::{ConfigError, Sources, settings};
use crate::container::running;

/// The settings of the store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// How the store is used. `CISTA_LEASE_TIMEOUT`, 30 s; `CISTA_CACHE_SIZE`, no limit; `CISTA_SHARED_STORES`, none.
    pub store: Settings,
    /// Whether an image is read to its end, and compared with its digest, before it is used. `CISTA_VERIFY_IMAGES`, no.
    pub verifies: bool,
}

impl StoreConfig {
    /// The settings of the store that sources give.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`].
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let defaults = Settings::default();
        let timeout = sources.number(&settings::LEASE_TIMEOUT)?;
        Ok(Self {
            store: Settings {
                lease_timeout: timeout.map_or(defaults.lease_timeout, |seconds| {
                    Duration::from_secs(u64::from(seconds))
                }),
                limit: sources.size(&settings::CACHE_SIZE)?,
                shared: sources
                    .path(&settings::SHARED_STORES)
                    .map(|paths| {
                        let paths = std::env::split_paths(&paths);
                        paths.filter(|path| !path.as_os_str().is_empty()).collect()
                    })
                    .unwrap_or_default(),
                readable: false,
                in_use: running::images,
            },
            verifies: sources.switch(&settings::VERIFY_IMAGES)?.unwrap_or(false),
        })
    }
}
