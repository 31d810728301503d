//! Settings of the store: who may take over whose work.

use std::time::Duration;

use cista_images::store::Settings;

use super::{ConfigError, Sources, settings};

/// The settings of the store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// How the store is used. `CISTA_LEASE_TIMEOUT`, 30 s.
    pub store: Settings,
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
            },
        })
    }
}
