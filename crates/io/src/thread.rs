//! Where a thread runs.

use std::io;

/// Pins the calling thread to one CPU.
///
/// # Errors
/// The operating system's: `InvalidInput` if there is no such CPU, or this process may not use it.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Lets the calling thread step back behind others: background work must not make a commit wait for
/// a time slice.
///
/// # Errors
/// The operating system's.
pub fn lower_current_thread_priority() -> io::Result<()> {
    // On Linux the nice value is a thread's own.
    Ok(rustix::process::setpriority_process(None, 15)?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn absent_cpu_is_refused_and_an_allowed_one_taken() {
        std::thread::spawn(|| {
            super::pin_current_thread(usize::MAX).unwrap_err();
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let cpu = (0..rustix::thread::CpuSet::MAX_CPU)
                .find(|cpu| allowed.is_set(*cpu))
                .unwrap();
            super::pin_current_thread(cpu).unwrap();
        })
        .join()
        .unwrap();
    }
}
