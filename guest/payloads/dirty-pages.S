# Dirties memory: writes one word to each of the 256 pages from 1 to 2 MiB, four
# times. KVM maps a page at its first write, and a dirty log (for a snapshot of only
# what changed) has exactly these pages. Reads all back, and prints "ok" if each has
# the last round's number.
.include "header.inc"
.code32
.text
	flat_header 32
	mov $4, %ecx			# rounds to go
1:	mov $0x100000, %ebx
2:	mov %ecx, (%ebx)
	add $0x1000, %ebx
	cmp $0x200000, %ebx
	jne 2b
	dec %ecx
	jnz 1b

	mov $0x100000, %ebx
3:	cmpl $1, (%ebx)
	jne 4f
	add $0x1000, %ebx
	cmp $0x200000, %ebx
	jne 3b
	mov $0x3f8, %dx
	mov $'o', %al
	out %al, %dx
	mov $'k', %al
	out %al, %dx
	mov $'\n', %al
	out %al, %dx
4:	power_off
