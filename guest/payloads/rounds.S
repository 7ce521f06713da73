# Writes pages in rounds, on both sides of the hole below 4 GiB, and checks their content. It needs
# 5 GiB of memory: RAM up to 3 GiB and from 4 GiB to 6 GiB. On the serial port "w" requests the next
# round, which writes every fourth page, zeros in every other round, and prints its number. "c" prints
# "y" if all pages are as written, or "n".
.include "header.inc"
	.equ PDPT, 0xa000		# the page tables that hull made: an identity map of 4 GiB
	.equ MORE, 0x20000		# two page directories: of 4 GiB to 6 GiB
	.equ EACH, 64			# pages at each place
	.equ PLACES, 4
	.equ DATA, 0x3f8
	.equ LSR, 0x3fd

.code64
.text
	flat_header 64
	mov $MORE, %edi
	movabs $0x100000083, %rax	# present, writable, 2 MiB: from 4 GiB
	mov $1024, %ecx
1:	mov %rax, (%rdi)
	add $0x200000, %rax
	add $8, %edi
	loop 1b
	movq $MORE + 3, PDPT + 8 * 4
	movq $MORE + 0x1003, PDPT + 8 * 5
	mov %cr3, %rax
	mov %rax, %cr3
	xor %ebx, %ebx			# the round
	mov $'>', %al
	mov $DATA, %dx
	out %al, %dx

command:
	mov $LSR, %dx
	in %dx, %al
	test $1, %al
	jz command
	mov $DATA, %dx
	in %dx, %al
	cmp $'w', %al
	je write
	cmp $'c', %al
	je check
	jmp command

write:
	inc %ebx
	xor %esi, %esi
2:	mov %esi, %eax
	xor %ebx, %eax
	test $3, %al
	jnz 3f
	call page
	xor %eax, %eax
	test $1, %bl
	jz 4f
	imul $0x01010101, %ebx, %eax
	xor %esi, %eax
4:	mov %eax, (%rdi)
	mov %eax, expected(, %rsi, 4)
3:	inc %esi
	cmp $EACH * PLACES, %esi
	jne 2b
	mov %ebx, %eax
	and $7, %al
	add $'0', %al
answer:
	mov $DATA, %dx
	out %al, %dx
	jmp command

check:
	xor %esi, %esi
5:	call page
	mov (%rdi), %eax
	cmp expected(, %rsi, 4), %eax
	jne 6f
	inc %esi
	cmp $EACH * PLACES, %esi
	jne 5b
	mov $'y', %al
	jmp answer
6:	mov $'n', %al
	jmp answer

# RDI: where page ESI is.
page:
	mov %esi, %eax
	shr $6, %eax
	mov places(, %rax, 8), %rdi
	mov %esi, %eax
	and $EACH - 1, %eax
	shl $13, %eax			# every second one: extents with holes
	add %rax, %rdi
	ret

	.balign 8
places:	.quad 0x100000, 0xbff00000, 0x100000000, 0x17ff00000
	.equ expected, 0x30000		# zeros at first, as the pages are
