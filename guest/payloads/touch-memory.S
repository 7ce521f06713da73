# Waits for a byte on COM1, then writes a word to each page from 1 to 120 MiB: the host then has to give the
# guest all of them, which a control group's limit of memory may forbid.
.include "header.inc"
.code32
.text
	flat_header 32
	mov $0x3fd, %dx			# line status
1:	in %dx, %al
	test $1, %al			# bit 0: a byte was received
	jz 1b
	mov $0x100000, %ebx
2:	mov %ebx, (%ebx)
	add $0x1000, %ebx
	cmp $0x7800000, %ebx
	jne 2b
	mov $0x3f8, %dx
	mov $'!', %al
	out %al, %dx
	power_off
