// Of Apple's headers what torch's ask for: with these a compiler on Linux can read the sources as for macOS.
#pragma once

#define TARGET_OS_MAC 1
#define TARGET_OS_OSX 1
#define TARGET_OS_IPHONE 0
