# A driver of a virtio console: one buffer through one virtqueue (virtio 1.2, 2.7, 3.1.1 and
# 4.2). The device is in hull's first slot; without a console there it prints a message.
.include "header.inc"
	.equ SLOT, 0xc0001000		# the registers (4.2.2)
	.equ MAGIC, 0x000
	.equ DEVICE_ID, 0x008
	.equ DRIVER_FEATURES, 0x020
	.equ DRIVER_FEATURES_SEL, 0x024
	.equ QUEUE_SEL, 0x030
	.equ QUEUE_NUM, 0x038
	.equ QUEUE_READY, 0x044
	.equ QUEUE_NOTIFY, 0x050
	.equ INTERRUPT_STATUS, 0x060
	.equ STATUS, 0x070
	.equ QUEUE_DESC, 0x080		# three addresses in memory, 64 bits each; the upper
	.equ QUEUE_DRIVER, 0x090	# halves are 0 after a reset
	.equ QUEUE_DEVICE, 0x0a0

	.equ DESC, 0x10000		# the descriptor table: 16 bytes a buffer
	.equ AVAIL, 0x11000		# the available ring, which the driver writes
	.equ USED, 0x12000		# the used ring, which the device writes
	.equ TRANSMIT, 1		# the queue from guest to host (5.3.2)

.code32
.text
	flat_header 32
	mov $SLOT, %ebx
	mov $no_console, %esi
	cmpl $0x74726976, MAGIC(%ebx)	# "virt"
	jne fail
	cmpl $3, DEVICE_ID(%ebx)	# a console (5.3.1)
	jne fail

# The handshake (3.1.1): reset, device found, driver found, features, agreement.
	movl $0, STATUS(%ebx)
	movl $1, STATUS(%ebx)		# ACKNOWLEDGE
	movl $3, STATUS(%ebx)		# and DRIVER
	movl $1, DRIVER_FEATURES_SEL(%ebx)
	movl $1, DRIVER_FEATURES(%ebx)	# bit 32: VIRTIO_F_VERSION_1, and no other
	movl $0xb, STATUS(%ebx)		# and FEATURES_OK
	mov $no_agreement, %esi
	testl $8, STATUS(%ebx)		# it reads back if the device agrees
	jz fail

# The queue: where its three parts are in memory.
	movl $TRANSMIT, QUEUE_SEL(%ebx)
	movl $4, QUEUE_NUM(%ebx)	# descriptors
	movl $DESC, QUEUE_DESC(%ebx)
	movl $AVAIL, QUEUE_DRIVER(%ebx)
	movl $USED, QUEUE_DEVICE(%ebx)
	movl $1, QUEUE_READY(%ebx)
	movl $0xf, STATUS(%ebx)		# and DRIVER_OK: the device is live

# One buffer: descriptor 0 has its address and length; the device reads it.
	movl $text, DESC		# address, lower and
	movl $0, DESC + 4		# upper half
	movl $text_end - text, DESC + 8	# length
	movl $0, DESC + 12		# no flags, no next descriptor
	movw $0, AVAIL + 4		# ring[0]: descriptor 0
	movw $1, AVAIL + 2		# idx: one entry so far. From here on the device may read it
	movl $TRANSMIT, QUEUE_NOTIFY(%ebx)

# The device writes the used ring and then sets bit 0 of its interrupt status.
	mov $not_used, %esi
	mov $100000000, %ecx		# many tries: a read is no exit
1:	testl $1, INTERRUPT_STATUS(%ebx)
	jnz 2f
	loop 1b
	jmp fail
2:	cmpw $1, USED + 2		# idx: one buffer came back
	jne fail
	power_off

fail:
	mov $0x3f8, %dx			# COM1
3:	lodsb
	test %al, %al
	jz 4f
	out %al, %dx
	jmp 3b
4:	power_off

text:	.ascii "Hello through a virtqueue\n"
text_end:
no_console:	.asciz "no virtio console at 0xc0001000\n"
no_agreement:	.asciz "the device wants other features\n"
not_used:	.asciz "the buffer did not come back\n"
