//! The time of day where we are: localtime_r(3), which knows the time zone.

/// A point in time as a clock and a calendar show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// From 0 for January.
    pub month: usize,
    /// From 1.
    pub day: u32,
    /// From 0.
    pub hour: u32,
    /// From 0.
    pub minute: u32,
}

/// Seconds since 1970 as the time here; None where the C library cannot say.
#[must_use]
pub fn local(seconds: u64) -> Option<Local> {
    let seconds = libc::time_t::try_from(seconds).ok()?;
    // SAFETY: all-zero bytes are a valid tm, and both arguments are valid for the call.
    let time = unsafe {
        let mut time: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&raw const seconds, &raw mut time).is_null() {
            return None;
        }
        time
    };
    Some(Local {
        month: usize::try_from(time.tm_mon).ok()?,
        day: u32::try_from(time.tm_mday).ok()?,
        hour: u32::try_from(time.tm_hour).ok()?,
        minute: u32::try_from(time.tm_min).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_month_is_that_month_everywhere() {
        let time = local(1_700_000_000).unwrap();
        assert_eq!(time.month, 10);
        assert!(time.day == 14 || time.day == 15);
        assert!(time.hour < 24 && time.minute < 60);
        assert_eq!(local(u64::MAX), None);
    }
}
