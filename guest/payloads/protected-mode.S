# 32-bit: flat segments, paging off. Writes to RAM at 1 MiB, reads it back and
# prints it, then powers off.
.include "header.inc"
.code32
.text
	flat_header 32
	mov $0x3f8, %dx
	movb $'3', 0x100000
	movb $'2', 0x100001
	mov 0x100000, %al
	out %al, %dx
	mov 0x100001, %al
	out %al, %dx
	mov $'\n', %al
	out %al, %dx
	power_off
